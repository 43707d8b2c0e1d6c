"""Programs that tests run in a process of their own; some stand in the place of one of ours."""
