"""`tab bash|zsh|fish`: scripts for Tab completion of `./client.py …` and of `python client.py …`.

click computes what may come next (environment variable `_CLIENT_PY_COMPLETE`). Its own shell scripts are not used: they
complete a program that is started by its name, and not one that is started by `python`.
"""

import click

MARK = "series-gateway: Tab completes this"
"""A line in both programs. The scripts run only files that contain it, not another project's client.py."""

BASH = """\
# source <(python {program} tab bash)
_{name}_ask() {{ # words, which, command
    local type value
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            plain) COMPREPLY+=("$value") ;;
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
        esac
    done < <(COMP_WORDS="$1" COMP_CWORD="$2" _{upper}_COMPLETE=bash_complete "${{@:3}}" 2>/dev/null)
}}
_{name}_is() {{ grep -qsF "{mark}" -- "$1"; }}
_{name}() {{
    if _{name}_is "$(type -P -- "$1")"; then
        _{name}_ask "${{COMP_WORDS[*]}}" "$COMP_CWORD" "$1"
    else
        compopt -o default
    fi
}}
_{name}_python() {{ # python {program} …; any other use of python goes where it went before
    if [[ $COMP_CWORD -ge 2 && ${{COMP_WORDS[1]##*/}} == {program} ]] && _{name}_is "${{COMP_WORDS[1]}}"; then
        local IFS=$' '
        _{name}_ask "${{COMP_WORDS[*]:1}}" "$((COMP_CWORD - 1))" "$1" "${{COMP_WORDS[1]}}"
    elif [[ -n $_{name}_before ]]; then
        "$_{name}_before" "$@"
    else
        compopt -o default
    fi
}}
if ! declare -p _{name}_before &>/dev/null; then
    for _{name}_before in _comp_load _completion_loader; do
        declare -F "$_{name}_before" >/dev/null && "$_{name}_before" python &>/dev/null && break
    done
    _{name}_before=$(complete -p python 2>/dev/null | sed -n 's/.*-F \\([^ ]*\\).*/\\1/p')
    complete -o nosort -F _{name}_python python python3
fi
complete -o nosort -F _{name} {program}
"""

ZSH = """\
# source <(python {program} tab zsh), behind compinit
_{name}_ask() {{ # words, which, command
    local type key descr
    local -a response plain described
    response=("${{(@f)$(env COMP_WORDS="$1" COMP_CWORD="$2" _{upper}_COMPLETE=zsh_complete "${{@:3}}" 2>/dev/null)}}")
    for type key descr in $response; do
        case $type in
            plain) if [[ $descr == _ ]]; then plain+=("$key"); else described+=("$key:$descr"); fi ;;
            dir) _path_files -/ ;;
            file) _path_files -f ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#plain )) && compadd -U -V unsorted -a plain
}}
_{name}_is() {{ grep -qsF "{mark}" -- "$1" }}
_{name}() {{
    if _{name}_is "$(whence -p -- "$words[1]")"; then
        _{name}_ask "${{words[*]}}" $((CURRENT - 1)) "$words[1]"
    else
        _default
    fi
}}
_{name}_python() {{ # python {program} …; any other use of python goes where it went before
    if (( CURRENT > 2 )) && [[ ${{words[2]:t}} == {program} ]] && _{name}_is "$words[2]"; then
        _{name}_ask "${{words[2,-1]}}" $((CURRENT - 2)) "$words[1]" "$words[2]"
    else
        $_{name}_before "$@"
    fi
}}
if (( ! $+_{name}_before )); then
    typeset -g _{name}_before=${{_comps[python]:-_default}}
    compdef _{name}_python python python3
fi
compdef _{name} {program}
"""

FISH = """\
# python {program} tab fish | source
function _{name}_is
    grep -qsF "{mark}" -- $argv[1]
end
function _{name}_runs
    set -l words (commandline -opc)
    test (count $words) -ge 2; and test (path basename -- $words[2]) = {program}; and _{name}_is $words[2]
end
function _{name}_itself
    set -l words (commandline -opc)
    _{name}_is (command -s -- $words[1])
end
function _{name}_ask
    set -l words (commandline -opc) (commandline -ct)
    set -l command $words[1]
    if test (path basename -- $words[1]) != {program}
        set command $words[1..2]
        set words $words[2..-1]
    end
    set -lx _{upper}_COMPLETE fish_complete
    set -lx COMP_WORDS "$words"
    set -lx COMP_CWORD (commandline -ct)
    for item in ($command 2>/dev/null)
        set -l parts (string split -m 1 "," -- $item)
        switch $parts[1]
            case plain
                echo $parts[2]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
        end
    end
end
complete --no-files --command {program} --condition _{name}_itself --arguments "(_{name}_ask)"
for python in python python3
    complete --no-files --command $python --condition _{name}_runs --arguments "(_{name}_ask)"
end
"""

NAMES = ("tab", "completion")
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def tab(program: str) -> list[click.Command]:
    """Return the command `tab`, which prints the script, and its hidden old name `completion` (until 0.2)."""

    def tab(shell: str) -> None:
        name = program.replace(".", "_")
        click.echo(SCRIPTS[shell].format(program=program, name=name, upper=name.upper(), mark=MARK), nl=False)

    about = "Print a shell script that enables Tab completion."
    how = f"bash and zsh: source <(python {program} tab bash); fish: python {program} tab fish | source"
    shell = click.Argument(["shell"], type=click.Choice(list(SCRIPTS)))
    return [
        click.Command(
            name, callback=tab, params=[shell], help=f"{about}\n\n{how}", no_args_is_help=True, hidden=name != NAMES[0]
        )
        for name in NAMES
    ]
