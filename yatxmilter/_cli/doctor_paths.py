"""
May the MTA's user reach a UNIX socket? Answered from what the file system says of each folder on
the way, as the MTA sees it from inside its chroot.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from yatxmilter._cli.doctor_findings import Finding, Reading, Use, unix_path

__all__ = ["Identity", "check_socket", "identity_of", "may"]

_MOST_LINKS: Final = 40
_ACL: Final = "system.posix_acl_access"
_ACL_USER, _ACL_GROUP_OWNER, _ACL_GROUP, _ACL_MASK = 0x02, 0x04, 0x08, 0x10


class Identity(NamedTuple):
    """
    The user and groups by which the file system decides.
    """

    name: str
    uid: int
    gids: frozenset[int]


class _Step(NamedTuple):
    """
    A file on the way.

    :ivar path: As the whole machine has it.
    """

    path: str
    status: os.stat_result
    acl: bytes


class _Missing(Exception):
    """
    The way ends before the file; the argument says where.
    """


class _Hidden(Exception):
    """
    We may not look ourselves; the argument says where.
    """


def identity_of(user: str, group: str = "") -> Identity:
    """
    Look a user of this machine up, with all groups; a number is a user without a name.

    :raises KeyError: when no user or group has that name.
    """
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        gid = entry.pw_gid
        if group:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        groups = os.getgrouplist(entry.pw_name, gid)
    except (ValueError, OverflowError) as error:
        # A NUL, or a number that is too large.
        raise KeyError(str(error)) from error
    return Identity(entry.pw_name, entry.pw_uid, frozenset(groups))


def may(status: os.stat_result, who: Identity, bit: int, acl: bytes = b"") -> bool:
    """
    Tell whether somebody has a right to a file.

    :param bit: 1 to enter a folder, 2 to write.
    :param acl: Its access control list, as the kernel keeps it.
    """
    if who.uid == 0:
        return True
    if who.uid == status.st_uid:
        return bool(status.st_mode >> 6 & bit)
    if acl:
        return _may_by_list(acl, status, who, bit)
    if status.st_gid in who.gids:
        return bool(status.st_mode >> 3 & bit)
    return bool(status.st_mode & bit)


def _may_by_list(acl: bytes, status: os.stat_result, who: Identity, bit: int) -> bool:
    # A version, then entries of a tag, rights, and the id of a user or a group.
    entries = list(struct.iter_unpack("<HHI", acl[4 : 4 + (len(acl) - 4) // 8 * 8]))
    mask = next((rights for tag, rights, _ in entries if tag == _ACL_MASK), 7)
    for tag, rights, number in entries:
        if tag == _ACL_USER and number == who.uid:
            return bool(rights & mask & bit)
    groups = [
        rights
        for tag, rights, number in entries
        if (tag == _ACL_GROUP_OWNER and status.st_gid in who.gids)
        or (tag == _ACL_GROUP and number in who.gids)
    ]
    if groups:
        return any(rights & mask & bit for rights in groups)
    return bool(status.st_mode & bit)


def _walk(root: str, path: str) -> Iterator[_Step]:
    """
    Go to a file as somebody would whose ``/`` is ``root``, symbolic links included.

    :raises _Missing: where there is nothing to go on to.
    :raises _Hidden: where we may not look.
    """
    root = root.rstrip("/")
    yield _look(root or "/")
    here: list[str] = []
    names = [name for name in path.split("/") if name][::-1]
    links = 0
    while names:
        name = names.pop()
        if name in (".", ".."):
            here = here[: len(here) - (name == "..")]
            continue
        step = _look("/".join([root, *here, name]))
        if not stat.S_ISLNK(step.status.st_mode):
            here.append(name)
            yield step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise _Missing(step.path)
        target = os.readlink(step.path)
        if target.startswith("/"):
            here = []
        names += [name for name in target.split("/") if name][::-1]


def _look(path: str) -> _Step:
    try:
        status = os.lstat(path)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise _Hidden(path) from error
        raise _Missing(path) from error
    try:
        acl = os.getxattr(path, _ACL, follow_symlinks=False)
    except (OSError, AttributeError):
        # There is none, or the system has none.
        acl = b""
    return _Step(path, status, acl)


def check_socket(
    reading: Reading, use: Use, who: Identity | None
) -> tuple[list[Finding], str | None]:
    """
    Say whether a socket is there, and whether the MTA's user may connect to it.

    :param who: The user, if there is such a one on this machine.
    :return: What was found, and where the socket is for the whole machine, symbolic links followed
        as the MTA follows them; ``None`` if there is none.
    """
    assert isinstance(use.address, str)
    path, view = use.address, use.view
    # What has no leading slash begins in the queue directory, with and without a chroot.
    start = path if path.startswith("/") or view.root else unix_path(use)
    try:
        *folders, last = _walk(view.root or "/", start)
    except _Hidden as error:
        what = f"{error} cannot be looked at by the user who runs this"
        return [Finding("note", "socket-hidden", what, "run doctor as root")], None
    except _Missing as error:
        return [_missing(use, str(error))], None
    if not stat.S_ISSOCK(last.status.st_mode):
        kind = "a folder" if stat.S_ISDIR(last.status.st_mode) else "a file"
        finding = Finding(
            "error",
            "socket-type",
            f"{last.path} is {kind} and not a socket",
            "see what made it, and let the milter listen at a path of its own",
        )
        return [finding], None
    findings: list[Finding] = []
    if reading.mta == "sendmail":
        findings += _unsafe(reading, use, folders)
    if who is not None:
        findings.append(_reach(folders, last, who))
    return findings, last.path


def _missing(use: Use, where: str) -> Finding:
    """
    Say why a socket is not there, as the process that connects sees the files.
    """
    path = unix_path(use)
    outside = str(use.address)
    if use.view.root and outside.startswith("/") and os.path.exists(outside):
        inside = f"{use.view.root.rstrip('/')}/milters/{os.path.basename(outside)}"
        return Finding(
            "error",
            "socket-chroot",
            f"{outside} is there, but the process of Postfix sees {use.view.root} as / and looks"
            f" for {path}, which is not there",
            f"let the milter listen at {inside} and write unix:milters/{os.path.basename(outside)}",
        )
    return Finding(
        "error",
        "socket-missing",
        f"{path} is not there: there is no {where}" if where != path else f"{path} is not there",
        "start the milter, and see where it listens: ss -lxp",
    )


def _reach(folders: list[_Step], last: _Step, who: Identity) -> Finding:
    """
    Tell whether a user may go all the way to a socket, and what is in the way.
    """
    for step in folders:
        if not may(step.status, who, 1, step.acl):
            return Finding(
                "error",
                "socket-permission",
                f"the user {who.name} may not enter the folder {step.path} ({_rights(step)})",
                f"chmod o+x {step.path}, or give the folder a group in which {who.name} is",
            )
    if not may(last.status, who, 2, last.acl):
        return Finding(
            "error",
            "socket-permission",
            f"the user {who.name} may not write to the socket {last.path} ({_rights(last)})",
            f"let the milter make it with mode 660 and a group in which {who.name} is"
            " (yatxmilter: unix:path:mode=660, in a folder with that group and mode 2750)",
        )
    return Finding("ok", "socket-permission", f"{last.path}: the user {who.name} may connect")


def _rights(step: _Step) -> str:
    status = step.status
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = str(status.st_uid)
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    more = "+" if step.acl else ""
    return f"{stat.filemode(status.st_mode)}{more} {owner}:{group}"


def _unsafe(reading: Reading, use: Use, folders: list[_Step]) -> Iterator[Finding]:
    """
    Say what Sendmail minds about the way to a socket.
    """
    path = unix_path(use)
    if os.path.islink(path):
        yield Finding(
            "error",
            "socket-unsafe",
            f"{path} is a symbolic link, which Sendmail does not follow to a socket",
            f"write where it leads: S=local:{os.path.realpath(path)}",
        )
    for step in folders:
        mode = step.status.st_mode
        sticky = mode & stat.S_ISVTX and "truststickybit" in reading.safe
        if mode & stat.S_IWOTH and not sticky:
            who = "everybody"
        elif mode & stat.S_IWGRP and not sticky and "groupwritabledirpathsafe" not in reading.safe:
            who = "its group"
        else:
            continue
        yield Finding(
            "error",
            "socket-unsafe",
            f"{step.path} may be written by {who}, and Sendmail does not use a socket below such a"
            " folder",
            f"chmod go-w {step.path}, or put the socket elsewhere, as in /run/milters",
        )
