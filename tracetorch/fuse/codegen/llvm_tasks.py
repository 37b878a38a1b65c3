"""Write a kernel over tasks in LLVM IR, and the function that threads call.

Each worker has a share of the tasks, the same in every call, so that its caches are of use again;
one that has done its own goes on with the shares of the others. The argument is the address of a
block of 64-bit integers::

    0        the number of tasks
    1        the number of workers
    2        the address of a function that returns the number of the calling worker; or else 0
    3        how many workers have come, where there is no such function
    4 ...    the arguments: an integer, or the address of an array; the scratch of each worker as
             the address of that of worker 0, and the bytes from one to the next
    ...      for each worker, a cache line apart, how many tasks of its share have been taken
"""

from __future__ import annotations

from tracetorch.fuse.codegen.llvm_writer import WORD, Array, Value, Writer, below

LINE = 8  # integers in a cache line, which two workers should not write to
HEADER = 4  # integers before the arguments


def task_entry(name: str, arguments: int, scratch: bool) -> list[str]:
    """Return the function of a block's address, which does what tasks are left."""
    w = Writer()
    block = Array(Value(w, "%a", "ptr"), WORD)
    tasks, workers, number = block[0], block[1], block[2]

    def measured() -> list[Value]:
        thread = w.value(f"call i32 {w.convert('inttoptr', number, 'ptr').text}()", "i32")
        return [w.convert("sext", thread, WORD)]

    def added(place: Value) -> Value:
        return w.value(f"atomicrmw add {place}, i64 1 seq_cst", WORD)

    own = w.choose(number.differs(0), measured, lambda: [added(block.at(3).pointer)])[0]
    memory = w.literal(0, WORD)
    if scratch:
        memory = block[HEADER + arguments] + own * block[HEADER + arguments + 1]
    memory = w.convert("inttoptr", memory, "ptr")
    # the counters of the workers begin with a cache line
    counters = -(-(HEADER + arguments + 2 * scratch) // LINE) * LINE
    with w.loop(0, workers) as other:
        who = (own + other.index) % workers
        counter = block.at(who * LINE + counters).pointer
        first, last = tasks * who // workers, tasks * (who + 1) // workers
        with w.repeat(below(last), first + added(counter)) as each:
            w.line(f"call void @task(ptr %a, {memory}, {each.index})")
            each.next = (first + added(counter),)
    return [f"define void @{name}(ptr %a) {{", "begin:", *w.lines, "  ret void", "}"]


def plain_entry(name: str, is_called: bool) -> list[str]:
    """Return a function of one task: other kernels give its scratch and number, or it is alone."""
    given, passed = "ptr %a, ptr %scratch, i64 %task", "ptr %a, ptr null, i64 0"
    head = f"define void @{name}({given if is_called else 'ptr %a'}) {{"
    call = f"  call void @task({given if is_called else passed})"
    return [head, call, "  ret void", "}"]


class TaskWriter(Writer):
    """Write a kernel over tasks: the function of one task, ``number``.

    Arguments come in the order in which the caller gives them, then scratch, then its offsets.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.number = Value(self, "%which", WORD)
        self.functions: list[str] = []
        self._arguments = 0
        self._has_scratch = False

    def integer(self) -> Value:
        place = Array(Value(self, "%a", "ptr"), WORD)
        self._arguments += 1
        return place[HEADER + self._arguments - 1]

    def integers(self, count: int) -> list[Value]:
        return [self.integer() for _ in range(count)]

    def array(self, element: str) -> Array:
        return Array(self.convert("inttoptr", self.integer(), "ptr"), element)

    def scratch(self, element: str) -> Array:
        """Return an array of scratch, which begins as many bytes in as the next argument says."""
        self._has_scratch = True
        start = Array(Value(self, "%scratch", "ptr"), "i8").at(self.integer())
        return Array(start.pointer, element)

    def function(self, head: str, inner: Writer) -> None:
        self.functions += [f"define internal {head} noinline {{", "begin:", *inner.lines, "}"]
        self.declared |= inner.declared

    def text(self) -> str:
        head = "define internal void @task(ptr noalias %a, ptr noalias %scratch, i64 %which) "
        task = [head + "noinline {", "begin:", *self.lines, "  ret void", "}"]
        entry = task_entry(self.name, self._arguments, self._has_scratch)
        return "\n".join([*self.functions, *task, *entry, *sorted(self.declared), ""])
