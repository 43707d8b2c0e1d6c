"""What several test modules share; a test module imports from here and from `bench.rig`, never from a test module.

Made up: `factories` (instances, reports, states, data sets), `data_sets` (byte by byte), `pdus`, `identifiers` (answers
of a PACS), `study_rows`, `old_series`, `journals` (one without a disk).
In this process: `serving` (the server), `gateways` (a whole gateway), `associations` (the SCP and who sends to it),
`foreign_pacs` (a PACS, and the gateway's way of asking it).
Processes: `sending` (series to a gateway), `rows` (what came of them), `commands`, `findings` (of `check`), `scripts`
(of `on-complete`), `terminals`, `programs` (run by tests, some in the place of ours).
What is held against: `papers` (sources, documents and their commands), `qido` (matching, written once more),
`migrating` (a database of an earlier version).
What bench needs, too, stands in `bench.rig`; a helper of one test module stays in it.
"""
