"""What all tests need of the process that they run in."""

import signal

from .loaded_models import smollm2, smollm2_path, tiny, tiny_path  # noqa: F401 (fixtures)

# A shell starts what it runs in the background with SIGINT ignored, and programs inherit that; tests send it to some.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# nohup does the same with SIGHUP, which the program respects.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
