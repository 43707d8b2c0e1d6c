"""What both command lines share: how they are asked, and how they show what they found.

`options` (help in sections, flags out of settings), `tables`, `findings` (what `check` shows), `machine` (disks and
ports, looked at by it), `live` (what stands below the log), `questions` and `dotenv_file` (what `init` asks and
writes), `shell_completion`.
"""
