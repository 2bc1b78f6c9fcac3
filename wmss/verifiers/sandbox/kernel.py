"""The kernel's calls that Python 3.11 has no function for: namespaces, mounts, capabilities, system call filters."""

import ctypes
import os
import platform
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
NEW_NAMESPACES = (
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
)

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SECCOMP_MODE_FILTER = 2
_LAST_CAPABILITY = "/proc/sys/kernel/cap_last_cap"
_CAPABILITIES_VERSION_3 = 0x20080522

_MACHINE = platform.machine()
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NUMBERS: dict[str, tuple[int, int]] = {
    # name: (x86_64, aarch64)
    "add_key": (248, 217),
    "bpf": (321, 280),
    "fsopen": (430, 430),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setns": (308, 268),
    "shmget": (29, 194),
    "socket": (41, 198),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
"""What the guest has no business with: sockets (some families know no network namespace), memory that no limit counts,
other processes, mounts and new namespaces, and calls known for their holes."""
_CLONE, _CLONE3 = (56, 220), (435, 435)


def supports_this_machine() -> bool:
    """Whether the numbers of system calls are known here."""
    return _MACHINE in _AUDIT_ARCH


def _number(of_machines: tuple[int, int]) -> int:
    return of_machines[list(_AUDIT_ARCH).index(_MACHINE)]


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(what: str, option: int, *arguments: Any) -> None:
    padded = [*arguments, *(0 for _ in range(4 - len(arguments)))]
    _check(_LIBC.prctl(option, *[a if isinstance(a, ctypes._Pointer) else ctypes.c_ulong(a) for a in padded]), what)


def unshare(flags: int) -> None:
    _check(_LIBC.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    _check(_LIBC.mount(*encoded, ctypes.c_ulong(flags), os.fsencode(options)), f"mount {target}")


def make_read_only(path: str, *, recursive: bool, devices: bool) -> None:
    """Of a mount, and of those below it: no writing, no set-uid programs and, unless `devices`, no device files."""

    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | (0 if devices else MOUNT_ATTR_NODEV)
    given = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    _check(
        _LIBC.syscall(
            ctypes.c_long(_number(_NUMBERS["mount_setattr"])),
            ctypes.c_int(_AT_FDCWD),
            os.fsencode(path),
            ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
            ctypes.byref(given),
            ctypes.c_size_t(ctypes.sizeof(given)),
        ),
        f"mount_setattr {path}",
    )


def enter_root(path: str) -> None:
    """Make a mounted folder the root of this process's mount namespace, and let go of all that was there before."""
    os.chdir(path)
    _check(_LIBC.syscall(ctypes.c_long(_number(_NUMBERS["pivot_root"])), b".", b"."), "pivot_root")
    _check(_LIBC.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def die_with_parent(parent: int | None) -> None:
    """Be killed when the thread that forked this process ends; `parent` is its pid, None where it has none here."""
    _prctl("die with parent", _PR_SET_PDEATHSIG, 9)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that they can be waited for."""
    _prctl("adopt orphans", _PR_SET_CHILD_SUBREAPER, 1)


def forbid_inspection() -> None:
    """Let no process of the same user read this one's memory or take its files."""
    _prctl("forbid inspection", _PR_SET_DUMPABLE, 0)


def drop_bounding_set(last_capability: int) -> None:
    for capability in range(last_capability + 1):
        _prctl("drop bounding set", _PR_CAPBSET_DROP, capability)


def last_capability() -> int:
    with open(_LAST_CAPABILITY, encoding="ascii") as file:
        return int(file.read())


def drop_capabilities() -> None:
    """All of them; with `forbid_new_privileges` for good."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION_3, 0)
    _check(_LIBC.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")


def forbid_new_privileges() -> None:
    """No program started from now on gets a right that this process does not have."""
    _prctl("no new privileges", _PR_SET_NO_NEW_PRIVS, 1)


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
"""Actions of a filter: go on, end the process, fail with EPERM, fail with ENOSYS."""
_AT_NUMBER, _AT_ARCH, _AT_FIRST_ARGUMENT = 0, 4, 16
_X32 = 0x40000000
"""On x86_64, the bit of calls of another ABI, with which a filter by number would be passed by."""


def filter_system_calls() -> None:
    """Refuse `_NUMBERS` and new namespaces by `clone`, for this process and all that come of it."""
    rules: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[_MACHINE]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _AT_NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE),
        # glibc falls back to clone, whose flags a filter can read.
        (_EQUAL, 0, 1, _number(_CLONE3)),
        (_RETURN, 0, 0, _UNKNOWN),
    ]
    for numbers in _NUMBERS.values():
        rules += [(_EQUAL, 0, 1, _number(numbers)), (_RETURN, 0, 0, _REFUSE)]
    rules += [
        (_EQUAL, 0, 3, _number(_CLONE)),
        (_LOAD, 0, 0, _AT_FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, NEW_NAMESPACES),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    instructions = (_Instruction * len(rules))(*[_Instruction(*rule) for rule in rules])
    program = _Program(len(rules), instructions)
    _prctl("filter system calls", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.pointer(program))
