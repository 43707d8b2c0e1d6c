#!/bin/sh
# Run ./run.sh for each complete CT series, by curl alone: `SERIES_KEY=… ./on_complete.sh URL`.
[ -s place ] || echo 0 > place
while sleep 1; do
    curl -sN -H "Authorization: Bearer $SERIES_KEY" -H "Last-Event-ID: $(cat place)" "$1/changes/stream" |
        while read -r name value; do
            case $name$change in
                id:*) number=$value ;;
                data:*) change=$value ;;
                '{'*'"Modality":"CT"'*'"Kinds":["conflict"]'*) change= && echo "$number" > place ;;
                '{'*'"Modality":"CT"'*'"Verdict":"'[vei]*|'{'*'"Modality":"CT"'*'"Verdict":"de'*)  # verified, declared, expected, idle
                    uid=${change#*'"SeriesInstanceUID":"'} && change=
                    ./run.sh "${uid%%\"*}" < /dev/null || exit 1
                    echo "$number" > place ;;
                '{'*) change= && echo "$number" > place ;;
            esac
        done
done
