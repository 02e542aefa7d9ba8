"""Hard cases for kernels, with the expected results: the table behind tests/kernels/test_pool.py and the soak test.

Every case runs on a kernel of its own. `cells` run before the cell under test; `after` and its value check the same session
afterwards, `next` and its value check that the next lease is not affected.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aimo_solver.kernels.limits import Isolation, KernelLimits, KillReason
from aimo_solver.kernels.session import ExecutionResult

# small enough to be reached in a test
LIMITS = KernelLimits(
    memory_mb=400,
    cpu_s=3,
    processes=40,
    open_files=128,
    scratch_mb=32,
    scratch_files=2_000,
    output_bytes=20_000,
    flood_bytes=500_000,
    grace_s=2.0,
)
_NAMESPACES = frozenset({Isolation.NAMESPACES})
_CONFINED = frozenset({Isolation.NAMESPACES, Isolation.LANDLOCK})  # either of them confines writes


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row.

    Attributes:
        code: the cell under test.
        error: the exception that ends it; "any" for one of several, None for none.
        killed: why the process is lost; several reasons where they race.
        out, value, note, trace: text that stdout, the notes and the traceback contain, and the whole value.
        anything: the call may end in any way; only what follows it is checked.
        needs: the row applies where one of these is active.
    """

    name: str
    code: str
    cells: tuple[str, ...] = ()
    timeout_s: float = 20.0
    error: str | None = None
    timed_out: bool = False
    killed: frozenset[KillReason] = frozenset()
    out: str = ""
    value: str | None = None
    note: str = ""
    trace: str = ""
    truncated: bool = False
    anything: bool = False
    after: str = ""
    after_value: str = ""
    next: str = ""
    next_value: str = ""
    needs: frozenset[Isolation] = frozenset()

    def applies(self, isolation: Iterable[Isolation]) -> bool:
        """Whether the row applies to kernels with this isolation."""
        return not self.needs or not self.needs.isdisjoint(isolation)

    def problems(self, result: ExecutionResult) -> list[str]:
        """Returns how `result` differs from this row."""
        if self.anything:
            return []
        lost = result.killed_for is not None
        wrong = []
        if lost and result.killed_for not in self.killed:
            wrong.append(f"killed for {result.killed_for}")
        if not lost and self.killed and self.error is None:
            wrong.append("was not killed")
        if not lost and self.error == "any" and not result.failed:
            wrong.append("did not fail")
        if not lost and self.error != "any" and result.error_name != self.error:
            wrong.append(f"ended with {result.error_name}")
        if self.timed_out and not result.timed_out:
            wrong.append("did not time out")
        if result.timed_out and not self.timed_out and self.error != "any":
            wrong.append("timed out")
        if result.truncated != self.truncated:
            wrong.append(f"truncated: {result.truncated}")
        if self.value is not None and result.value != self.value:
            wrong.append(f"has the value {result.value}")
        for part, whole in ((self.out, result.stdout), (self.note, " ".join(result.notes)), (self.trace, result.traceback or "")):
            if part not in whole:
                wrong.append(f"lacks {part!r}")
        return wrong


def _killed(*reasons: KillReason) -> frozenset[KillReason]:
    return frozenset(reasons)


LEAKS = [
    Case(name="global", code="x = 1", next="'x' in globals()", next_value="False"),
    Case(
        name="fake module",
        code="import sys, types\nsys.modules['sympy'] = types.ModuleType('sympy')",
        next="import sympy\nsympy.sqrt(16)",
        next_value="4",
    ),
    Case(name="patched math", code="import math\nmath.sqrt = lambda x: 7", next="math.sqrt(16)", next_value="4.0"),
    Case(
        name="patched builtins",
        code="import builtins\nbuiltins.sum = lambda x: 7\nsum([1, 2])",
        value="7",
        next="sum([1, 2])",
        next_value="3",
    ),
    Case(
        name="patched sympy class",
        code="sympy.Integer.__add__ = lambda a, b: 7\nsympy.Integer(1) + 1",
        value="7",
        next="sympy.Integer(1) + 1",
        next_value="2",
    ),
    Case(name="mpmath precision", code="mpmath.mp.dps = 100", next="mpmath.mp.dps", next_value="64"),
    Case(
        name="decimal precision",
        code="import decimal\ndecimal.getcontext().prec = 3",
        next="import decimal\ndecimal.getcontext().prec",
        next_value="28",
    ),
    Case(
        name="numpy settings",
        code="np.seterr(all='raise'); np.set_printoptions(precision=2);",
        next="np.geterr()['divide'], np.get_printoptions()['precision']",
        next_value="('warn', 8)",
    ),
    Case(
        name="environment",
        code="import os\nos.environ['LEAK'] = '1'",
        next="import os\nos.environ.get('LEAK', 'none')",
        next_value="'none'",
    ),
    Case(
        name="working directory",
        code="import os\nos.chdir('/')",
        next="import os\nos.path.basename(os.getcwd())",
        next_value="'work'",
    ),
    Case(
        name="thread",
        code="import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), name='leak', daemon=True).start()",
        next="import threading\n'leak' in [t.name for t in threading.enumerate()]",
        next_value="False",
    ),
    Case(
        name="own resource limits",
        code="import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))",
        next="import resource\nresource.getrlimit(resource.RLIMIT_NOFILE)[0]",
        next_value="128",
    ),
    Case(
        name="random seeds",
        code="import random\nrandom.seed(0)\nnp.random.seed(0)\nsympy.core.random.seed(0)\nrandom.random()",
        value="0.8444218515250481",
        next="import random\n(random.random() == 0.8444218515250481, np.random.random() == 0.5488135039273248)",
        next_value="(False, False)",
    ),
    Case(
        name="signal handlers",
        code="import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.signal(signal.SIGINT, signal.SIG_IGN);",
        next="import signal\nsignal.getsignal(signal.SIGTERM) == signal.SIG_DFL",
        next_value="True",
    ),
    Case(
        name="recursion limit",
        code="import sys\nsys.setrecursionlimit(123456)",
        next="import sys\nsys.getrecursionlimit() < 123456",
        next_value="True",
    ),
    Case(
        name="digit limit",
        code="import sys\nsys.set_int_max_str_digits(640)",
        next="len(str(10**9999))",
        next_value="10000",
    ),
    Case(
        name="warnings filter",
        code="import warnings\nwarnings.simplefilter('error')",
        next="import warnings\nwarnings.warn('w')\n'went on'",
        next_value="'went on'",
    ),
    Case(
        name="hooks",
        code="import sys\nsys.displayhook = sys.excepthook = lambda *a: None\nsys.path.insert(0, '/leak')",
        next="import sys\n'/leak' in sys.path",
        next_value="False",
    ),
    Case(name="history", code="41 + 1", value="42", next="len(In), Out", next_value="(2, {})"),
    Case(
        name="garbage collector and trace",
        code="import gc, sys\ngc.disable()\nsys.settrace(lambda *a: None)",
        next="import gc, sys\ngc.isenabled(), sys.gettrace()",
        next_value="(True, None)",
    ),
]

FILES = [
    Case(
        name="files",
        code="open('leak.txt', 'w').write('x')\nimport os\n'leak.txt' in os.listdir('.')",
        value="True",
        next="import os\nos.path.exists('leak.txt')",
        next_value="False",
    ),
    Case(
        name="module file in the working directory",
        code="open('heapq.py', 'w').write('x = 1')\nopen('sitecustomize.py', 'w').write('x = 1');",
        next="import importlib, heapq\nimportlib.reload(heapq).heappush.__name__",
        next_value="'heappush'",
    ),
    Case(
        name="files in /tmp",
        code="import pathlib\np = pathlib.Path('/tmp/leak-of-a-case')\ntry: p.write_text('x')\nexcept OSError: pass",
        next="import os\nos.path.exists('/tmp/leak-of-a-case')",
        next_value="False",
        needs=_CONFINED,
    ),
    Case(
        name="shared memory",
        code=(
            "from multiprocessing import shared_memory, resource_tracker\nresource_tracker.register = lambda *a: None\n"
            "shared_memory.SharedMemory('leak', create=True, size=1000).size >= 1000"
        ),
        value="True",
        next="import os\nos.path.exists('/dev/shm/leak')",
        next_value="False",
        needs=frozenset({Isolation.NAMESPACES, Isolation.USER}),
    ),
]

PROCESSES = [
    Case(name="child process", code="import subprocess\nchild = subprocess.Popen(['sleep', '1000'])"),
    Case(
        name="daemon",
        code="import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(1000)\n  os._exit(0)",
    ),
    Case(
        name="children that ignore signals",
        code=(
            "import subprocess\nc = 'trap \"\" INT TERM HUP; while true; do sleep 1; done'\n"
            "for _ in range(5): subprocess.Popen(c, shell=True)"
        ),
    ),
    Case(
        name="child that does not end",
        code="!echo partial; sleep 1000",
        timeout_s=0.5,
        error="KeyboardInterrupt",
        timed_out=True,
        out="partial",
    ),
    Case(
        name="memory of children",
        code=(
            "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        x = bytearray(b'y') * (200 * 2**20)\n"
            "        time.sleep(1000)\ntime.sleep(1000)"
        ),
        killed=_killed(KillReason.MEMORY),
        note="memory",
    ),
    Case(
        name="fork bomb",
        code="import os\nwhile True:\n    os.fork()",
        timeout_s=2.0,
        anything=True,
        needs=frozenset({Isolation.USER}),
    ),
    Case(
        name="fork bomb of the shell",
        code="!bomb() { bomb | bomb & }; bomb; sleep 1; echo done",
        anything=True,
        needs=frozenset({Isolation.USER}),
    ),
    Case(
        name="threads",
        code="import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        error="RuntimeError",
        needs=frozenset({Isolation.USER}),
    ),
]

ENDS = [
    Case(
        name="os._exit",
        code="import os\nprint('last words')\nos._exit(3)",
        killed=_killed(KillReason.EXIT),
        out="last words",
        note="code 3",
    ),
    Case(
        name="segmentation fault",
        code="import ctypes\nctypes.string_at(0)",
        killed=_killed(KillReason.CRASH),
        out="Segmentation fault",
        note="SIGSEGV",
    ),
    Case(name="abort", code="import os\nos.abort()", killed=_killed(KillReason.CRASH), note="SIGABRT"),
    Case(name="kills itself", code="import os\nos.kill(os.getpid(), 9)", killed=_killed(KillReason.CRASH), note="SIGKILL"),
    Case(
        name="kills its parent",
        code="import os, time\ntry:\n    os.kill(os.getppid(), 9)\nexcept PermissionError:\n    pass\ntime.sleep(0.2)\n'alive'",
        value="'alive'",
        needs=frozenset({Isolation.NAMESPACES, Isolation.USER}),
    ),
    Case(
        name="kills everybody",
        code="import os\ntry:\n    os.kill(-1, 9)\nexcept ProcessLookupError:\n    pass\n'alive'",
        value="'alive'",
        needs=_NAMESPACES,
    ),
    Case(name="sys.exit", code="import sys\nsys.exit(1)", cells=("x = 1",), error="SystemExit", after="x", after_value="1"),
    Case(name="exit()", code="exit()", cells=("x = 1",), error="SystemExit", after="x", after_value="1"),
    Case(name="quit() after a reset", code="quit()", cells=("%reset -f",), error="SystemExit", after="2**10", after_value="1024"),
    Case(
        name="stops the event loop",
        code="import asyncio\nasyncio.get_event_loop().stop()\nawait asyncio.sleep(1)",
        killed=_killed(KillReason.EXIT),
    ),
    Case(
        name="closes all files",
        code="import os\nos.closerange(3, 128)",
        timeout_s=1.0,
        anything=True,
    ),
    Case(name="CPU time", code="while True: pass", timeout_s=30.0, killed=_killed(KillReason.CPU_TIME), note="cpu time"),
    Case(
        name="stops itself",
        code="import os\nos.kill(os.getpid(), 19)",
        timeout_s=0.5,
        timed_out=True,
        killed=_killed(KillReason.HANG),
    ),
    Case(
        name="lost process is replayed",
        code="import os\nos._exit(0)",
        cells=("def f(x):\n    return x + 1", "y = f(1)\nz = f(2)\n1/0"),
        killed=_killed(KillReason.EXIT),
        note="run again",
        after="y, z, f(3)",
        after_value="(2, 3, 4)",
    ),
    Case(
        name="lost process whose cells were slow",
        code="import os\nos._exit(0)",
        cells=("import time\ny = 1\ntime.sleep(1.2)",),
        killed=_killed(KillReason.EXIT),
        note="is gone",
        after="'y' in globals()",
        after_value="False",
    ),
    Case(
        name="loop in C",
        code="print('partial', end='')\nsum(range(10**13))",
        timeout_s=0.5,
        timed_out=True,
        killed=_killed(KillReason.HANG),
        out="partial",
        note="restarted",
        after="2**10",
        after_value="1024",
    ),
    Case(
        name="swallowed interrupt",
        cells=("x = 5",),
        code="while True:\n    try:\n        x = 5\n        while True: x = 5\n    except BaseException:\n        print('no')",
        timeout_s=0.5,
        timed_out=True,
        killed=_killed(KillReason.HANG),
        out="no",
        note="run again",
        after="x",
        after_value="5",
    ),
]

HANGS = [
    Case(
        name="sleep",
        code="print('partial')\nimport time\ntime.sleep(1000)",
        timeout_s=0.5,
        error="KeyboardInterrupt",
        timed_out=True,
        out="partial",
        note="time limit of 0.5 s",
        after="2**10",
        after_value="1024",
    ),
    Case(
        name="busy loop keeps the session",
        cells=("x = 5",),
        code="while True: x += 1",
        timeout_s=0.5,
        error="KeyboardInterrupt",
        timed_out=True,
        after="x > 5",
        after_value="True",
    ),
    Case(
        name="power tower",
        code="3 ** math.factorial(2025)",
        timeout_s=0.5,
        anything=True,
    ),
    Case(
        name="ignored interrupt",
        code="import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
        timeout_s=0.5,
        timed_out=True,
        killed=_killed(KillReason.HANG),
    ),
    Case(
        name="endless generator",
        code="sum(1 for _ in itertools.count())",
        timeout_s=0.5,
        error="KeyboardInterrupt",
        timed_out=True,
    ),
    Case(
        name="endless repr",
        code="class R:\n    def __repr__(self):\n        while True: pass\nR()",
        timeout_s=0.5,
        error="KeyboardInterrupt",
        timed_out=True,
    ),
    Case(
        name="endless await",
        code="import asyncio\nprint('partial')\nawait asyncio.sleep(1000)",
        timeout_s=0.5,
        error="CancelledError",
        timed_out=True,
        out="partial",
        after="2**10",
        after_value="1024",
    ),
    Case(
        name="lock that is never released",
        code="import threading\nl = threading.Lock()\nl.acquire()\nl.acquire()",
        timeout_s=0.5,
        error="KeyboardInterrupt",
        timed_out=True,
    ),
]

FLOODS = [
    Case(
        name="print for ever",
        code="while True: print('y' * 70)",
        error="KeyboardInterrupt",
        truncated=True,
        note="more than 500,000 bytes",
    ),
    Case(
        name="one huge line", code="print('y' * 10**8)", error="KeyboardInterrupt", truncated=True, note="more than 500,000 bytes"
    ),
    Case(
        name="flood that goes on",
        code="import os\nwhile True:\n    try:\n        os.write(1, b'y' * 9000)\n    except BaseException:\n        pass",
        truncated=True,
        killed=_killed(KillReason.OUTPUT),
        note="more than 500,000 bytes",
    ),
    Case(name="flood of a child", code="!yes", error="any", truncated=True, note="more than 500,000 bytes"),
    Case(
        name="long output is cut in the middle",
        code="for i in range(20_000): print(i)",
        truncated=True,
        out="bytes left out",
        after="2**10",
        after_value="1024",
    ),
    Case(name="huge value", code="'y' * 10**7", value=None, after="len(_)", after_value="10000000"),
    Case(name="huge message", code="raise ValueError('y' * 10**7)", error="ValueError", trace="characters left out"),
]

LIMITED = [
    Case(name="memory at once", code="x = bytearray(10**10)", error="MemoryError", after="2**10", after_value="1024"),
    Case(
        name="memory bit by bit",
        code="x = []\nwhile True: x.append(bytes(10**6))",
        error="MemoryError",
        after="del x\n2**10",
        after_value="1024",
    ),
    Case(name="numpy memory", code="np.ones((10**5, 10**5))", error="any", after="2**10", after_value="1024"),
    Case(name="open files", code="f = []\nwhile True: f.append(open('/dev/null'))", error="OSError", trace="Too many open files"),
    Case(
        name="one large file",
        code="with open('f', 'wb') as f:\n    for _ in range(100): f.write(bytes(10**6))",
        error="OSError",
        after="2**10",
        after_value="1024",
    ),
    Case(
        name="deep recursion", code="def f(n): return f(n + 1)\nf(0)", error="RecursionError", after="2**10", after_value="1024"
    ),
    Case(
        name="deep recursion allowed",
        code="import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)",
        timeout_s=2.0,
        anything=True,
    ),
    Case(
        name="deep recursion by request",
        code="def f(n): return f(n - 1) + 1 if n else 0\nimport sys\nsys.setrecursionlimit(10**6)\nf(20_000)",
        value="20000",
    ),
    Case(name="huge integer", code="3 ** 10**6", value=None, after="len(str(7**20_000))", after_value="16902"),
]

BARRED = [
    Case(
        name="socket",
        code="import socket\nsocket.create_connection(('1.1.1.1', 80), 2)",
        error="OSError",
        trace="unreachable",
        needs=frozenset({Isolation.SECCOMP}),
    ),
    Case(
        name="download",
        code="import urllib.request\nurllib.request.urlopen('http://example.com', timeout=2)",
        error="URLError",
        needs=frozenset({Isolation.SECCOMP, Isolation.NETWORK}),
    ),
    Case(
        name="server on this host",
        code="import socket\ns = socket.socket()\ns.bind(('', 0))\ns.listen()\nsocket.create_connection(s.getsockname(), 2)",
        error="OSError",
        needs=frozenset({Isolation.SECCOMP, Isolation.NETWORK}),
    ),
    Case(
        name="socket of a child",
        code="!python3 -c 'import socket; socket.create_connection((\"1.1.1.1\", 80), 2)'",
        out="unreachable",
        needs=frozenset({Isolation.SECCOMP, Isolation.NETWORK}),
    ),
    Case(name="writes to /etc", code="open('/etc/leak', 'w')", error="any", needs=frozenset({Isolation.USER, *_CONFINED})),
    Case(
        name="removes a library",
        code="import os\nos.remove(sympy.core.numbers.__file__)",
        error="any",
        next="import importlib\nimportlib.reload(importlib.import_module('sympy.core.numbers')).__name__",
        next_value="'sympy.core.numbers'",
        needs=frozenset({Isolation.USER, *_CONFINED}),
    ),
    Case(name="secrets in the environment", code="import os\n[k for k in os.environ if 'SECRET' in k]", value="[]"),
    Case(name="another virtual environment", code="import sys\nsys.path[0]", value="''"),
    Case(
        name="descriptors of a program",
        code="import subprocess\nsubprocess.check_output('ls -l /proc/self/fd', shell=True, close_fds=False).count(b'socket')",
        value="0",
    ),
    Case(
        name="secrets in /proc",
        code=(
            "import glob\nfound = []\nfor p in glob.glob('/proc/[0-9]*/environ'):\n    try:\n"
            "        if b'KERNEL_TEST_SECRET' in open(p, 'rb').read(): found.append(p)\n    except OSError: pass\nfound"
        ),
        value="[]",
        needs=frozenset({Isolation.USER, Isolation.NAMESPACES}),
    ),
    Case(
        name="becomes root",
        code="import os\nos.setuid(0)\nopen('/etc/leak', 'w')",
        error="any",
        needs=frozenset({Isolation.USER, *_CONFINED}),
    ),
    Case(name="the library itself", code="import aimo_solver.kernels.pool", error="ModuleNotFoundError", needs=_NAMESPACES),
    Case(
        name="others' processes",
        code="import os\nlen([p for p in os.listdir('/proc') if p.isdigit()])",
        value="2",
        needs=_NAMESPACES,
    ),
]

# disk space and memory that a process does not show as its own; without a file system of limited size, the kernel is killed
_CALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_REFUSED = "(-1, 1)"  # EPERM
_SECCOMP = frozenset({Isolation.SECCOMP})
RESOURCES = [
    Case(
        name="full disk",
        code="import time\nfor i in range(999):\n    with open(f'f{i}', 'wb') as f: f.write(bytes(10**6))\n    time.sleep(0.01)",
        error="OSError",
        killed=_killed(KillReason.DISK),
        after="2**10",
        after_value="1024",
    ),
    Case(
        name="full disk of files without a name",
        code=(
            "import tempfile, time\nfor i in range(100):\n    f = globals()[f'f{i}'] = tempfile.TemporaryFile()\n"
            "    f.write(bytes(20 * 10**6))\n    f.flush()\n    time.sleep(0.05)"
        ),
        error="OSError",
        killed=_killed(KillReason.DISK),
    ),
    Case(
        name="countless files",
        code="import time\nfor i in range(10**6):\n    open(str(i), 'w').close()\n    if i % 100 == 0: time.sleep(0.01)",
        error="OSError",
        killed=_killed(KillReason.DISK),
    ),
    Case(
        name="deep tree",
        code="import os, time\nfor i in range(5000):\n    os.mkdir('d')\n    os.chdir('d')\nfor _ in range(20): time.sleep(0.1)",
        error="OSError",
        killed=_killed(KillReason.DISK),
    ),
    Case(
        name="writes beside its folder",  # with namespaces, that is /tmp/work
        code="import os\nopen('/file' if os.getcwd() == '/tmp/work' else '../file', 'w')",
        error="any",
        needs=frozenset({Isolation.USER, *_CONFINED}),
    ),
    Case(
        name="files in /dev/shm",
        code=(
            # named by the pool (256 consecutive user ids), as other pools may share the directory
            "import os, time\nfor i in range(100):\n    p = f'/dev/shm/fill-{(os.getuid() - 100_000) // 256}-{os.getuid()}-{i}'\n"
            "    with open(p, 'wb') as f: f.write(bytes(10**7))\n    time.sleep(0.02)"
        ),
        error="OSError",
        killed=_killed(KillReason.MEMORY),
        next="import os\n[n for n in os.listdir('/dev/shm') if n.startswith(f'fill-{(os.getuid() - 100_000) // 256}-')]",
        next_value="[]",
        needs=frozenset({Isolation.NAMESPACES, Isolation.USER}),
    ),
    Case(
        name="memory shared by children",
        code=(
            "import mmap, os, time\nm = mmap.mmap(-1, 900 << 20)\nfor i in range(0, len(m), 4096):\n    m[i] = 1\n"
            "    if i % (1 << 24) == 0: time.sleep(0.02)"
        ),
        killed=_killed(KillReason.MEMORY),
    ),
    Case(
        name="table that children inherit",
        code=(
            "import os, time\ntable = b'x' * (250 << 20)\nfor _ in range(8):\n    if os.fork() == 0:\n"
            "        time.sleep(2)\n        os._exit(table[7] - 120)\n[os.wait()[1] for _ in range(8)]"
        ),
        value="[0, 0, 0, 0, 0, 0, 0, 0]",
    ),
    Case(name="memory file", code="import os\nos.memfd_create('m')", error="PermissionError", needs=_SECCOMP),
    Case(
        name="System V objects",
        code=_CALL + "[(f(4711, *size, 0o1666), ctypes.get_errno()) for f, size in "
        "((libc.shmget, [4096]), (libc.semget, [1]), (libc.msgget, []))]",
        value=f"[{_REFUSED}, {_REFUSED}, {_REFUSED}]",
        needs=_SECCOMP,
    ),
    Case(
        name="message queue",
        code=_CALL + "import os\nlibc.mq_open(b'/leak', os.O_CREAT | os.O_RDWR, 0o666, None), ctypes.get_errno()",
        value=_REFUSED,
        needs=_SECCOMP,
    ),
    Case(
        name="user namespace",
        code=_CALL + "a = libc.unshare(0x10000000), ctypes.get_errno()\n"
        "b = libc.syscall(56 if os.uname().machine == 'x86_64' else 220, 0x10000011, 0, 0, 0, 0)\nif b == 0: os._exit(0)\n"
        "a, (b, ctypes.get_errno())",
        cells=("import os",),
        value=f"({_REFUSED}, {_REFUSED})",
        needs=_SECCOMP,
    ),
    Case(
        name="keyring",
        code=_CALL + "import os\nlibc.syscall(248 if os.uname().machine == 'x86_64' else 217, b'user', b'k', b'v', 1, -4), "
        "ctypes.get_errno()",
        value=_REFUSED,
        needs=_SECCOMP,
    ),
    Case(
        name="file by its handle",
        code=_CALL
        + "handle = (ctypes.c_char * 200)()\nhandle[0] = 128\nlibc.open_by_handle_at(0, handle, 0), ctypes.get_errno()",
        value=_REFUSED,
        needs=_SECCOMP,
    ),
]

ODD = [
    Case(name="input", code="x = input('number? ')", error="EOFError", trace="input() is not available"),
    Case(name="standard input", code="import sys\nsys.stdin.read()", value="''"),
    Case(name="shell line", code="!echo hi; echo ho >&2", out="hi\nho"),
    Case(name="shell line assigned", code="x = !echo hi\nx", value="['hi']"),
    Case(name="magic", code="%timeit -n1 -r1 1 + 1", out="loop"),
    Case(name="cell magic", code="%%bash\necho from bash", out="from bash"),
    Case(name="unknown magic", code="%nonsense", error="UsageError", trace="nonsense"),
    Case(name="help", code="math.gcd?", out="Greatest Common Divisor"),
    Case(name="top-level await", code="import asyncio\nawait asyncio.sleep(0.01, result=7)", value="7"),
    Case(name="reset", cells=("x = 1",), code="%reset -f", after="'x' in globals()", after_value="False"),
    Case(
        name="deleted builtins",
        code="import builtins\nfor n in ('len', 'print', 'isinstance', 'ValueError', '__import__'): delattr(builtins, n)",
        after="import math\nprint(len('abc'))\nisinstance(1, int)",
        after_value="True",
    ),
    Case(name="cleared globals", code="globals().clear()", after="2**10", after_value="1024"),
    Case(
        name="closed stdout",
        code="import sys\nsys.stdout.close()\nsys.stderr.close()",
        after="print('heard')\n1",
        after_value="1",
    ),
    Case(
        name="closed descriptors 1 and 2", code="import os\nos.close(1)\nos.close(2)", after="print('heard')\n1", after_value="1"
    ),
    Case(name="redirected stdout", code="import sys, io\nsys.stdout = io.StringIO()", after="print('heard')\n1", after_value="1"),
    Case(name="forked session", code="import os\npid = os.fork()\nx = 1", after="x", after_value="1"),
    Case(
        name="fork in a task between two calls",
        cells=(
            "import asyncio, os\nkernel = os.getpid()\nasync def fork():\n    os.fork()\ntask = asyncio.create_task(fork())",
            *["'a call for the fork'"] * 10,
        ),
        code="os.getpid() == kernel",
        value="True",
    ),
    Case(
        name="alarm left behind",
        code="import signal, time\nsignal.signal(signal.SIGALRM, lambda *a: 1/0)\nsignal.setitimer(signal.ITIMER_REAL, 0.05)",
        after="import time\ntime.sleep(0.2)\n'alive'",
        after_value="'alive'",
    ),
    Case(
        name="late output of a thread",
        code="import threading\nthreading.Timer(0.1, print, ['late']).start()",
        after="import time\ntime.sleep(0.3)\n1",
        after_value="1",
    ),
    Case(
        name="process pool",
        code="from multiprocessing import Pool\ndef f(x): return x * x\nwith Pool(2) as p: r = p.map(f, range(5))\nr",
        value="[0, 1, 4, 9, 16]",
    ),
    Case(
        name="process pool by executor",
        code="from concurrent.futures import ThreadPoolExecutor\nlist(ThreadPoolExecutor(4).map(lambda x: x * x, range(5)))",
        value="[0, 1, 4, 9, 16]",
    ),
    Case(
        name="plot",
        code=(
            "try:\n    import matplotlib.pyplot as plt\nexcept ImportError:\n    print('no matplotlib')\nelse:\n"
            "    plt.plot([1, 2])\n    plt.show()\n    print('drawn')"
        ),
        timeout_s=60.0,
        out="\n",
    ),
    Case(name="display", code="display(sympy.Symbol('x') ** 2)", out="x**2"),
    Case(name="NUL", code="x = 1\0", error="any"),
    Case(
        name="lone surrogates",
        code="print('\\ud800')\nraise ValueError('\\udfff')",
        error="ValueError",
        out="\\ud800",
        trace="\\udfff",
    ),
    Case(name="syntax error", code="def f(:\n    pass", error="SyntaxError", trace="nothing of this cell was run"),
    Case(
        name="half a cell",
        code="a = 1\nb = 2\nc = a / 0\nd = 4",
        error="ZeroDivisionError",
        trace="statement 3 of 4 failed, at line 3",
        after="a, b, 'd' in globals()",
        after_value="(1, 2, False)",
    ),
    Case(
        name="half a line",
        code="a = 1; b = 2; c = a / 0",
        error="ZeroDivisionError",
        trace="statement 3 of 3 failed, at line 1",
        after="a, b",
        after_value="(1, 2)",
    ),
    Case(name="missing package", code="import no_such_package.part", error="ModuleNotFoundError", trace="is not installed here"),
    Case(
        name="exception that cannot be shown",
        code="class E(Exception):\n    def __str__(self): raise ValueError('x')\nraise E()",
        error="any",
        trace="cannot be shown",
        after="2**10",
        after_value="1024",
    ),
    Case(name="repr that fails", code="class R:\n    def __repr__(self): 1/0\nR()", error="ZeroDivisionError"),
    Case(
        name="lowest recursion limit",
        code=(
            "import sys\nfor n in range(1, 1000):\n    try:\n        sys.setrecursionlimit(n)\n        break\n"
            "    except RecursionError: pass"
        ),
        anything=True,
        timeout_s=2.0,
    ),
    Case(name="emptied sys.modules", code="import sys\nsys.modules.clear()", anything=True, timeout_s=2.0),
    Case(name="trace function that fails", code="import sys\nsys.settrace(lambda *a: 1/0)", anything=True, timeout_s=2.0),
    Case(name="replaced import", code="import builtins\nbuiltins.__import__ = None\nimport math", error="TypeError"),
    Case(
        name="exception of a base class",
        code="raise BaseException('bare')",
        error="BaseException",
        after="2**10",
        after_value="1024",
    ),
    Case(name="exception group", code="raise ExceptionGroup('g', [ValueError(1)])", error="ExceptionGroup"),
]

# repeated with less isolation
ISOLATION_CASES = [*FILES, *PROCESSES, *ENDS, *BARRED, *RESOURCES]
CASES = [*LEAKS, *HANGS, *FLOODS, *LIMITED, *ODD, *ISOLATION_CASES]
