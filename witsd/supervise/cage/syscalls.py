"""The numbers of the system calls that foreign code is refused, and the filter (seccomp) that refuses them."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

TYPE_CHECKING = False  # these modules cost a third of the start, and are for checkers alone
if TYPE_CHECKING:
    from collections.abc import Iterable

#: On x86_64, and on every newer architecture (aarch64, riscv64); None where there is none.
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chmod": (90, None),
    "chown": (92, None),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "finit_module": (313, 273),
    "fremovexattr": (199, 16),
    "fsconfig": (431, 431),
    "fsetxattr": (190, 7),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "futimesat": (261, None),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "lchown": (94, None),
    "lremovexattr": (198, 15),
    "lsetxattr": (189, 6),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "open": (2, None),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "openat": (257, 56),
    "openat2": (437, 437),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "removexattr": (197, 14),
    "removexattrat": (466, 466),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "settimeofday": (164, 170),
    "setxattr": (188, 5),
    "setxattrat": (463, 463),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmget": (29, 194),
    "socket": (41, 198),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "truncate": (76, 45),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "utime": (132, None),
    "utimensat": (280, 88),
    "utimes": (235, None),
    "vhangup": (153, 58),
}
#: Nothing that a program needs which computes something; much of what has let people out of sandboxes.
HARMFUL = [
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "chroot",
    "clock_adjtime",
    "clock_settime",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "migrate_pages",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
]
#: What reaches others where nothing but Landlock keeps them apart: it says nothing of owners and modes, or of memory,
#: queues and processes of the same user.
SHARED = [
    "chmod",
    "chown",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "fremovexattr",
    "fsetxattr",
    "futimesat",
    "ioprio_set",
    "lchown",
    "lremovexattr",
    "lsetxattr",
    "mq_open",
    "mq_unlink",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "removexattr",
    "removexattrat",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "setpriority",
    "setxattr",
    "setxattrat",
    "shmat",
    "shmctl",
    "shmget",
    "truncate",
    "utime",
    "utimensat",
    "utimes",
]
SIGNALS = ("kill", "pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "tgkill", "tkill")

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ARCH, _ARGUMENTS = 4, 16
#: x86_64 has a second table of calls with this bit.
_X32 = 0x40000000
#: All of CLONE_NEW* that clone takes.
_NEW_NAMESPACES = 0x7E020000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_INTERNET = (2, 10, 16)  # IPv4, IPv6, and netlink, by which resolvers ask for addresses
_SET_SECCOMP, _FILTER = 22, 2


def known() -> bool:
    """Whether there is a filter for this machine."""
    return os.uname().machine in _ARCHITECTURES and struct.calcsize("P") == 8


class _Filter:
    def __init__(self, machine: str) -> None:
        self._column = 0 if machine == "x86_64" else 1
        self.code = [
            (_LOAD, 0, 0, _ARCH),
            (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
            (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, 0),
        ]
        if machine == "x86_64":
            self.code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]

    def refuse(self, names: Iterable[str], number: int = errno.EPERM) -> None:
        for name in names:
            self._case(name, [(_RETURN, 0, 0, _ERRNO | number)])

    def refuse_if(self, name: str, argument: int, mask: int, values: tuple[int, ...], *, unless: bool = False) -> None:
        """Refused where that argument, masked, is one of the values; with ``unless`` where it is none of them."""
        matching, other = (_ALLOW, _ERRNO | errno.EPERM) if unless else (_ERRNO | errno.EPERM, _ALLOW)
        tests = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
        self._case(
            name,
            [
                (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
                (_AND, 0, 0, mask),
                *tests,
                (_RETURN, 0, 0, other),
                (_RETURN, 0, 0, matching),
            ],
        )

    def refuse_bits(self, name: str, argument: int, bits: int) -> None:
        self._case(
            name,
            [
                (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
                (_ANY_BIT, 0, 1, bits),
                (_RETURN, 0, 0, _ERRNO | errno.EPERM),
                (_RETURN, 0, 0, _ALLOW),
            ],
        )

    def _case(self, name: str, body: list[tuple[int, int, int, int]]) -> None:
        number = NUMBERS[name][self._column]
        if number is not None:
            self.code += [(_EQUAL, 0, len(body), number), *body]

    def packed(self) -> bytes:
        return b"".join(struct.pack("=HBBI", *each) for each in [*self.code, (_RETURN, 0, 0, _ALLOW)])


def program(*, network: bool, shared: bool, signals: bool, truncates: bool, machine: str = "") -> bytes:
    """The filter. ``shared``: others of this user can be seen, so ``SHARED`` is refused, and where ``signals``, those.

    ``truncates``: opening a file for reading can empty it, as nothing else forbids it.
    """
    it = _Filter(machine or os.uname().machine)
    it.refuse(HARMFUL)
    it.refuse(("clone3",), errno.ENOSYS)  # its flags cannot be looked at; libraries then use clone
    it.refuse_bits("clone", 0, _NEW_NAMESPACES)
    it.refuse_if("ioctl", 1, 0xFFFFFFFF, (_TIOCSTI, _TIOCLINUX))
    it.refuse_if("prlimit64", 0, 0xFFFFFFFF, (0,), unless=True)
    if network:
        it.refuse_if("socket", 0, 0xFFFFFFFF, _INTERNET, unless=True)
    else:
        # Of every family: those of files reach whoever listens in a folder that can be seen, others leave the machine.
        it.refuse(("socket",))
    if shared:
        it.refuse(SHARED)
    if signals:
        it.refuse(SIGNALS)
    if truncates:
        it.refuse_if("openat", 2, os.O_ACCMODE | os.O_TRUNC, (os.O_TRUNC,))
        it.refuse_if("open", 1, os.O_ACCMODE | os.O_TRUNC, (os.O_TRUNC,))
        it.refuse(("openat2",), errno.ENOSYS)
    return it.packed()


def install(libc: ctypes.CDLL, code: bytes) -> None:
    """Put a filter over this thread and all that it starts. It takes no new privileges first. Raises ``OSError``."""
    text = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(text))
    if libc.prctl(_SET_SECCOMP, _FILTER, head, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
