"""Samples of what every agent's whole process tree uses: all agents in one pass.

``Sampler.sweep`` is a plain generator made for the event loop, cut into slices, and not for a thread. Each
``pread`` lets go of the GIL, so beside a busy loop a thread waits for it up to 5 ms a time: 600 reads took 2 ms in
the loop and 120 ms in a thread. Nothing that is read waits for a process (see ``proc_files``).
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Collection, Generator, Iterator

import attrs

from witsd.supervise.identity import Identity
from witsd.supervise.proc_files import Listing, Member, ProcFiles, pids_in
from witsd.supervise.sample import Sample

#: Processes between two moments at which the caller may let others run: about half a millisecond.
_SLICE = 48
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: A sample over less than this would turn one clock tick into a peak.
_SHORTEST_S = 0.05


def boottime() -> float:
    """Seconds since boot, suspension included: what start times in ``/proc`` are counted in."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


#: Clock ticks, bytes read, bytes written.
_Used = tuple[int, int, int]
_NOTHING: _Used = (0, 0, 0)


def _less(these: _Used, those: _Used) -> _Used:
    """The difference, nowhere below zero."""
    return max(0, these[0] - those[0]), max(0, these[1] - those[1]), max(0, these[2] - those[2])


@attrs.define(eq=False)
class _Tree:
    """One agent's processes and what they have used so far."""

    agent: str
    roots: dict[int, Identity] = attrs.field(factory=dict)
    #: Who is in its control group, where it has one.
    listing: Listing | None = None
    #: Those roots that were found to be who they should be, and so the sessions that are theirs.
    sessions: set[int] = attrs.field(factory=set)
    members: dict[int, Member] = attrs.field(factory=dict)
    last_at: float | None = None
    pass_number: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    #: What ended in the last sweep and may yet be credited to a parent.
    credit: _Used | None = None
    closed: bool = False


class Sampler:
    """All agents in one pass. Not for several threads.

    ``kept_fds`` bounds the descriptors that stay open (default: a third of the soft limit at the start); processes
    beyond it are read by opening their files each time, which costs about three times as much.
    ``now`` counts as ``CLOCK_BOOTTIME``.
    """

    def __init__(self, *, now: Callable[[], float] = boottime, kept_fds: int | None = None) -> None:
        self._now = now
        self._files = ProcFiles(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3 if kept_fds is None else kept_fds)
        self._trees: dict[str, _Tree] = {}
        #: Their files are still open.
        self._removed: list[_Tree] = []
        self._orphans_file = f"/proc/self/task/{os.getpid()}/children"
        self._not_ours: set[int] = set()
        self._most_percent = 100.0 * (os.cpu_count() or 1)
        self._left = _SLICE

    def add(self, agent: str, root: Identity, procs_file: str | None = None) -> None:
        """Count this process and its descendants for ``agent`` from the next sweep on; may be said of several.

        ``procs_file`` is the agent's ``cgroup.procs``: then the tree is who is listed there, which also holds
        those that have left session and parent. Without one a descendant belongs to the tree if it is a child of
        a member, or an orphan adopted by us in a root's session; once it belongs it does so until it ends.
        """
        tree = self._trees.setdefault(agent, _Tree(agent))
        tree.roots[root.pid] = root
        if procs_file is not None:
            if tree.listing is not None:
                self._files.close_listing(tree.listing)
            tree.listing = Listing(procs_file)

    def remove(self, agent: str, pid: int | None = None) -> None:
        """Forget this root, or the agent with all that was counted; with its last root the agent goes too.

        Files of it that are open are closed by ``let_go``, or with the next sweep.
        """
        tree = self._trees.get(agent)
        if tree is None:
            return
        if pid is not None:
            tree.roots.pop(pid, None)
            tree.sessions.discard(pid)
        if pid is None or not tree.roots:
            del self._trees[agent]
            tree.closed = True
            self._removed.append(tree)

    def let_go(self) -> None:
        """Close the files of what was removed: a tenth of what an agent's end costs, and not to be waited for."""
        removed, self._removed = self._removed, []
        for tree in removed:
            for member in tree.members.values():
                self._files.close(member)
            tree.members.clear()
            if tree.listing is not None:
                self._files.close_listing(tree.listing)

    def close(self) -> None:
        """Forget everything and close what is open."""
        for agent in tuple(self._trees):
            self.remove(agent)
        self.let_go()

    def pids(self, agent: str) -> tuple[int, ...]:
        """Who was counted in the last sweep."""
        tree = self._trees.get(agent)
        return tuple(tree.members) if tree else ()

    def sample_all(self) -> dict[str, Sample]:
        """A sweep in one go."""
        return dict(done for done in self.sweep() if done is not None)

    def most_fds(self, agent: str) -> int:
        """The most descriptors that one of its processes had in the last sweep."""
        tree = self._trees.get(agent)
        return max((member.fds for member in tree.members.values()), default=0) if tree else 0

    def sweep(self, only: Collection[str] | None = None) -> Iterator[tuple[str, Sample] | None]:
        """Measure every agent once, or these alone. None in between means: a good moment to let others run.

        Agents may be added and removed meanwhile. An agent whose processes are all gone has a sample of zeros.
        The first sample of an agent is the average since its first process started.
        """
        self.let_go()
        trees = [tree for name, tree in self._trees.items() if only is None or name in only]
        for tree in trees:
            self._join_roots(tree)
        orphans = self._orphans()
        try:
            self._left = _SLICE
            for tree in trees:
                if not tree.closed:
                    sample = yield from self._measure(tree, orphans)
                    if not tree.closed:
                        yield tree.agent, sample
        finally:
            for left in orphans.values():  # their agent was removed meanwhile
                for orphan in left:
                    self._files.close(orphan)

    # ---- one tree -------------------------------------------------------------------------------------

    def _measure(self, tree: _Tree, orphans: dict[int, list[Member]]) -> Generator[None, None, Sample]:
        strays = self._join(tree, orphans)
        own = waited_for = read_bytes = write_bytes = 0
        gone: list[Member] = []
        queue = list(tree.members.values())
        for member in queue:  # children found on the way are appended
            fresh, stat, ticks, children_ticks = member.fresh, member.stat, member.own_ticks, member.children_ticks
            got, put = member.read_bytes, member.write_bytes
            if not self._files.read(member, tree.pass_number):
                gone.append(member)
            elif strays and member.pid in strays and member.state != b"Z":
                # A zombie is not listed, and yet its parent's. Whoever is alive has left.
                self._files.close(tree.members.pop(member.pid))
            else:
                if not fresh or self._is_newer(member, tree):
                    if member.stat is not stat:
                        own += member.own_ticks - ticks
                        waited_for += member.children_ticks - children_ticks
                    read_bytes += member.read_bytes - got
                    write_bytes += member.write_bytes - put
                if tree.listing is None:
                    listed = self._files.children(member, tree.pass_number)
                    if listed != member.children:
                        queue.extend(self._adopt_children(member, tree, listed))
            self._left -= 1
            if not self._left:
                self._left = _SLICE
                yield None
                if tree.closed:
                    break
        used = (waited_for, read_bytes, write_bytes)
        if gone or tree.credit is not None:
            used = self._settle(tree, gone, used)
        return self._sum(tree, own + used[0], used[1], used[2])

    def _settle(self, tree: _Tree, gone: list[Member], used: _Used) -> _Used:
        """Let go of those that have ended; what was used, without what is a repetition.

        A parent that waits for a child is credited with all that it used, and most of that was counted when the
        child was sampled. The daemon is no member: what it reaps is credited to nobody.
        """
        credit = _NOTHING
        parents = set(tree.members)
        for member in gone:
            if tree.members.pop(member.pid, None) is not None:
                self._files.close(member)
            if member.parent in parents:
                ticks = member.own_ticks + member.children_ticks
                credit = (credit[0] + ticks, credit[1] + member.read_bytes, credit[2] + member.write_bytes)
        before = tree.credit or _NOTHING
        # A parent that was read just before it waited shows the credit in the next sweep: that one looks back too.
        unclaimed = _less(credit, _less(used, before))
        tree.credit = unclaimed if unclaimed != _NOTHING else None
        return _less(_less(used, before), credit)

    def _sum(self, tree: _Tree, ticks: int, read_bytes: int, write_bytes: int) -> Sample:
        now = self._now()
        members = tree.members.values()
        since = tree.last_at
        if since is None:
            since = min((member.start_time / _TICKS_PER_S for member in members), default=now)
        tree.last_at = now
        tree.pass_number += 1
        tree.read_bytes += read_bytes
        tree.write_bytes += write_bytes
        rss = fds = threads = 0
        for member in members:
            rss += member.rss_pages
            fds += member.fds
            threads += member.threads
        busy = 100.0 * ticks / _TICKS_PER_S / max(now - since, _SHORTEST_S)
        return Sample(
            now,
            min(busy, self._most_percent),
            rss * _PAGE_BYTES,
            fds,
            threads,
            len(members),
            tree.read_bytes,
            tree.write_bytes,
        )

    def _is_newer(self, member: Member, tree: _Tree) -> bool:
        """Whether all that a newcomer has used was used since the last sample; if not, it only starts to count."""
        return tree.last_at is None or member.start_time / _TICKS_PER_S >= tree.last_at - 1 / _TICKS_PER_S

    def _join_roots(self, tree: _Tree) -> None:
        for pid, root in tree.roots.items():
            if pid not in tree.members:
                member = self._files.open(pid, children=tree.listing is None)
                if member is not None and self._keep(tree, member, root.start_time in (0, member.start_time)):
                    tree.sessions.add(pid)

    def _join(self, tree: _Tree, orphans: dict[int, list[Member]]) -> set[int]:
        """Let in adopted orphans of the roots' sessions, or whoever the container lists.

        Returns the members that the container does not list.
        """
        if tree.listing is not None:
            return self._join_listed(tree, tree.listing)
        for session in tree.sessions:
            for orphan in orphans.pop(session, ()):
                self._keep(tree, orphan, orphan.pid not in tree.members)
        return set()

    def _join_listed(self, tree: _Tree, listing: Listing) -> set[int]:
        listed = self._files.listed(listing)
        if listed is None:
            return set()  # it cannot be read: those known go on being counted until they end
        if listed == tree.members.keys():
            return set()  # as nearly always
        strays = tree.members.keys() - listed - tree.roots.keys()
        opened = [self._files.open(pid, children=False) for pid in listed - tree.members.keys()]
        fresh = [member for member in opened if member is not None]
        if fresh:
            # Listed before it was opened and listed still: that is the one which was opened, and no stranger.
            listed = self._files.listed(listing) or set()
            for member in fresh:
                self._keep(tree, member, member.pid in listed)
        return strays

    def _adopt_children(self, member: Member, tree: _Tree, listed: bytes) -> Iterator[Member]:
        """The children of this member that were not in the tree yet; they are now."""
        complete = True
        for text in listed.split():
            pid = int(text)
            if pid in tree.members:
                continue
            child = self._files.open(pid)
            if child is None:
                complete = False  # ended, or no descriptor left for it: looked for again
            # Between listing and opening it may have ended and its number gone to a stranger.
            elif self._keep(tree, child, child.parent in tree.members):
                yield child
        member.children = listed if complete else b""

    def _orphans(self) -> dict[int, list[Member]]:
        """Processes that became our children when their parents ended, by session, unless they are known."""
        listed = pids_in(self._orphans_file)
        if not listed:
            self._not_ours.clear()
            return {}
        self._not_ours &= listed
        known = {pid for tree in self._trees.values() for pid in tree.members}
        sessions = {pid for tree in self._trees.values() if tree.listing is None for pid in tree.sessions}
        found: dict[int, list[Member]] = {}
        for pid in listed - known - self._not_ours:
            member = self._files.open(pid)
            if member is None:
                continue
            if member.session in sessions and pid != member.session:
                found.setdefault(member.session, []).append(member)
            else:
                self._not_ours.add(pid)
                self._files.close(member)
        return found

    def _keep(self, tree: _Tree, member: Member, wanted: bool) -> bool:
        if not wanted:
            self._files.close(member)
            return False
        tree.members[member.pid] = member
        # What it has used is counted when it is read for the first time.
        member.own_ticks = member.children_ticks = 0
        member.stat = b""
        member.fresh = True
        return True
