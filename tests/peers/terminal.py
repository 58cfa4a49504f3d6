"""Somebody at a terminal, with a shell that runs programs in the mesh by the words given as arguments (`tulle run … --`).
Fails where they would notice that it is not the program alone that they run."""

import fcntl
import os
import pty
import select
import shlex
import struct
import sys
import termios
import time

PATIENCE = 60
RUN = shlex.join(sys.argv[1:])

shell, terminal = pty.fork()
if shell == 0:
    os.environ.update(PS1="OUT> ", TERM="dumb")
    os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
unread = ""


def expect(text):
    global unread
    until = time.monotonic() + PATIENCE
    while text not in unread:
        ready, _, _ = select.select([terminal], [], [], max(0, until - time.monotonic()))
        if not ready:
            sys.exit(f"{text!r} does not come; what came is {unread!r}")
        unread += os.read(terminal, 65536).decode(errors="replace")
    unread = unread.partition(text)[2]


def enter(text, *answers):
    os.write(terminal, text.encode())
    for answer in answers:
        expect(answer)


def resize(rows):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 99, 0, 0))


INTERRUPT, SUSPEND = "\x03", "\x1a"

expect("OUT> ")
# What is typed comes back twice: from the terminal, and from the program.
enter(f"{RUN} cat\n")
enter("hello\n", "hello\r\nhello\r\n")
enter(SUSPEND, "Stopped", "OUT> ")
enter("fg\n", "cat\r\n")
enter("again\n", "again\r\nagain\r\n")
enter(INTERRUPT, "OUT> ")
enter("echo status=$?\n", "status=130", "OUT> ")

# A program that stops itself, as pagers do.
enter(f"{RUN} sh -c 'kill -TSTP $$; echo went=$((1+1))'\n", "Stopped", "OUT> ")
enter("fg\n", "went=2", "OUT> ")
enter("echo status=$?\n", "status=0", "OUT> ")

# A shell in the mesh has jobs of its own.
enter(f"{RUN} bash --norc --noprofile --noediting -i\n", "OUT> ")
enter("PS1=IN'> '\n", "IN> ")
enter("cat\n")
enter("hello\n", "hello\r\nhello\r\n")
enter(SUSPEND, "Stopped", "IN> ")
enter("fg\n", "cat\r\n")
# The shell names the job before it hands the terminal over: what is typed earlier than that is its own.
enter("again\n", "again\r\nagain\r\n")
enter(INTERRUPT, "IN> ")
resize(33)
enter("stty size\n", "33 99", "IN> ")
enter("exit 3\n", "OUT> ")
enter("echo status=$?\n", "status=3", "OUT> ")

# It ends when it is told, which may be before it pauses.
WAITS = """
import os, signal
signal.signal(signal.SIGWINCH, lambda *_: (print("rows", os.get_terminal_size().lines, flush=True), os._exit(0)))
print("u" + "p", flush=True)
signal.pause()
"""
waits = shlex.join(["python3", "-c", WAITS.replace("\n", ";").strip(";")])
enter(f"{RUN} {waits}\n", "up\r\n")
resize(44)
expect("rows 44")
expect("OUT> ")

# Somebody who is not at the terminal tells `tulle run` to go, and means the program.
TOLD = """
import os, signal
signal.signal(signal.SIGINT, lambda *_: (print("to" + "ld", flush=True), os._exit(5)))
os.kill(os.getppid(), signal.SIGINT)
signal.pause()
"""
told = shlex.join(["python3", "-c", TOLD.replace("\n", ";").strip(";")])
enter(f"{RUN} {told}\n", "told\r\n", "OUT> ")
enter("echo status=$?\n", "status=5", "OUT> ")
enter("exit\n")
os.waitpid(shell, 0)
