"""Runs Python code as a script is run, and tells the value of its last expression."""

import _ast
import builtins
import os
import sys

NAME = "<code>"
_ONLY_AST = 0x400


def run(code: str, value_fd: int, value_bytes: int) -> int:
    """Its exit status. What its last expression is worth, if not None, goes to ``value_fd`` as ``repr`` has it."""
    for stream in (sys.stdout, sys.stderr):
        # Line by line: what was printed before a limit ends it is not lost.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    main = type(sys)("__main__")
    main.__dict__["__builtins__"] = builtins
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.exit)
    sys.modules["__main__"] = main
    sys.argv = [NAME]
    sys.path[:] = ["", *(path for path in sys.path if path.startswith((sys.base_prefix, sys.base_exec_prefix)))]
    status = 0
    try:
        tree = compile(code, NAME, "exec", _ONLY_AST)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
        exec(compile(tree, NAME, "exec"), main.__dict__)  # noqa: S102 - it is what we are for
        if last is not None:
            value = eval(compile(_ast.Expression(last.value), NAME, "eval"), main.__dict__)  # noqa: S307
            if value is not None:
                _tell(repr(value), value_fd, value_bytes)
    except SystemExit as exit_:
        status = _status(exit_.code)
    except BaseException as error:  # noqa: BLE001 - anything that foreign code raises
        _show(error, code)
        status = 1
    return _end(status)


def _tell(text: str, fd: int, most: int) -> None:
    # One more than allowed says that it was cut.
    data = memoryview(text.encode("utf-8", "backslashreplace"))[: most + 1]
    while data:
        data = data[os.write(fd, data) :]


def _status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def _show(error: BaseException, code: str) -> None:
    """A traceback that begins in the code, and shows its lines."""
    at = error.__traceback__
    while at is not None and at.tb_frame.f_code.co_filename != NAME:
        at = at.tb_next
    try:
        import linecache
        import traceback

        linecache.cache[NAME] = (len(code), None, code.splitlines(True), NAME)
        traceback.print_exception(type(error), error, at)
    except BaseException:  # noqa: BLE001 - an exception that cannot be shown, or no memory to do it
        sys.stderr.write(f"{type(error).__name__}\n")


def _end(status: int) -> int:
    """As an interpreter ends: threads are waited for, and what was registered is run."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        if "atexit" in sys.modules:
            sys.modules["atexit"]._run_exitfuncs()
    except BaseException as error:  # noqa: BLE001 - foreign code again
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # closed by the code, or by who reads it
    return status
