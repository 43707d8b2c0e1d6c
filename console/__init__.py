"""The parts that the command lines of gateway and server share.

`options` makes help and options from settings; `tables` prints results; `findings` and `machine` are the common part of
`check`; `questions` and `dotenv_file` are that of `init`; `live` draws a status below the log; `shell_completion` is
`tab`.
"""
