"""Runs a program to whom the kernel seems to lack something.

kernel_without.py nf_tables|ipv6 PROGRAM ARGUMENT…

A seccomp filter (seccomp(2)) refuses the sockets of it, with the error that a kernel without it gives. Needs root.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

AF_INET6, AF_NETLINK, NETLINK_NETFILTER = 10, 16, 12
SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
# Of struct seccomp_data: the system call, and its first and third argument.
CALL, FAMILY, PROTOCOL = 0, 16, 32


def conditions(what):
    if what == "nf_tables":
        return [(FAMILY, AF_NETLINK), (PROTOCOL, NETLINK_NETFILTER)], errno.EPROTONOSUPPORT
    assert what == "ipv6", what
    return [(FAMILY, AF_INET6)], errno.EAFNOSUPPORT


def refuse(what):
    wanted, error = conditions(what)
    wanted = [(CALL, SOCKET), *wanted]
    program = []
    for index, (offset, value) in enumerate(wanted):
        # On to the next condition, or past all of them and the refusal.
        program.append((LOAD, 0, 0, offset))
        program.append((EQUAL, 0, 2 * (len(wanted) - index) - 1, value))
    program += [(RETURN, 0, 0, REFUSE | error), (RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")


refuse(sys.argv[1])
os.execv(sys.argv[2], sys.argv[2:])
