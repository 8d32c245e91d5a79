"""The exit statuses of all commands but 0, which is success, and those of a signal."""

ERROR = 1  # one line on standard error says which
USAGE = 2
STOPPED = 3  # after a signal, with what was under way finished; the same command goes on
LOST = 4  # another process of the run is gone; the same commands go on
INTERRUPTED = 130
