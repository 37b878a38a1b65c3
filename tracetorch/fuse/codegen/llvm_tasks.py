"""Write the functions around a kernel in LLVM IR: those that threads call, and parameters' loads.

Each worker has a share of the tasks, the same in every call, so that what a core has in its caches
is of use to it again; one that has done its own goes on with the shares of the others. The argument
is the address of a block of 64-bit integers::

    0           the number of tasks
    1           the number of workers
    2           the address of a function that returns the number of the calling worker; or else 0
    3           how many workers have come, where there is no such function
    4 ...       the arguments: an integer as it is, an array as the address of its first value;
                the scratch of each worker as the address of that of worker 0, and the bytes from
                one to the next
    ...         for each worker, a cache line apart, how many tasks of its share have been taken
"""

from __future__ import annotations

LINE = 8  # integers in a cache line, which two workers should not write to
HEADER = 4  # integers before the arguments

_TASK_ENTRY = """\
define void @{name}(ptr %a) {{
start:
  %tasks = load i64, ptr %a
  %workers.at = getelementptr i64, ptr %a, i64 1
  %workers = load i64, ptr %workers.at
  %number.at = getelementptr i64, ptr %a, i64 2
  %number = load i64, ptr %number.at
  %asked = icmp ne i64 %number, 0
  br i1 %asked, label %ask, label %come
ask:
  %number.of = inttoptr i64 %number to ptr
  %thread = call i32 %number.of()
  %own.asked = sext i32 %thread to i64
  br label %ready
come:
  %come.at = getelementptr i64, ptr %a, i64 3
  %own.come = atomicrmw add ptr %come.at, i64 1 seq_cst
  br label %ready
ready:
  %own = phi i64 [ %own.asked, %ask ], [ %own.come, %come ]
{scratch}
  br label %owner
owner:
  %other = phi i64 [ 0, %ready ], [ %other.next, %owner.done ]
  %some = icmp slt i64 %other, %workers
  br i1 %some, label %share, label %end
share:
  %shifted = add i64 %own, %other
  %who = urem i64 %shifted, %workers
  %line = mul i64 %who, {line}
  %counter = add i64 %line, {counters}
  %counter.at = getelementptr i64, ptr %a, i64 %counter
  %low.part = mul i64 %tasks, %who
  %first = udiv i64 %low.part, %workers
  %who.next = add i64 %who, 1
  %high.part = mul i64 %tasks, %who.next
  %last = udiv i64 %high.part, %workers
  br label %next
next:
  %taken = atomicrmw add ptr %counter.at, i64 1 seq_cst
  %which = add i64 %first, %taken
  %left = icmp slt i64 %which, %last
  br i1 %left, label %work, label %owner.done
work:
  call void @task(ptr %a, ptr %scratch, i64 %which)
  br label %next
owner.done:
  %other.next = add i64 %other, 1
  br label %owner
end:
  ret void
}}
"""

# %low is a column; the place of its neuron among the parameters is counted on from there.
_SPREAD = """\
define internal {vector} @{name}(ptr %values, i64 %size, i64 %low, i64 %count, i64 %neurons, \
i64 %inner) noinline {{
start:
  %one = icmp eq i64 %size, 1
  br i1 %one, label %same, label %several
same:
  %only = load {real}, ptr %values
  br label %fill
several:
  %width = mul i64 %neurons, %inner
  %place = urem i64 %low, %width
  %neuron = udiv i64 %place, %inner
  %run = urem i64 %place, %inner
  %flat = icmp eq i64 %inner, 1
  br i1 %flat, label %rows, label %images
rows:
  %end = add i64 %neuron, %count
  %straight = icmp sle i64 %end, %neurons
  br i1 %straight, label %together, label %lanes
together:
  %there = getelementptr {real}, ptr %values, i64 %neuron
  {load}
  ret {vector} %block
images:
  %run.end = add i64 %run, %count
  %within = icmp sle i64 %run.end, %inner
  br i1 %within, label %neighbours, label %lanes
neighbours:
  %of.all.at = getelementptr {real}, ptr %values, i64 %neuron
  %of.all = load {real}, ptr %of.all.at
  br label %fill
fill:
  %value = phi {real} [ %only, %same ], [ %of.all, %neighbours ]
  %lane0 = insertelement {vector} poison, {real} %value, i64 0
  %filled = shufflevector {vector} %lane0, {vector} poison, <{width} x i32> zeroinitializer
  ret {vector} %filled
lanes:
  %all.at = alloca {vector}
  store {vector} zeroinitializer, ptr %all.at
  br label %lane
lane:
  %i = phi i64 [ 0, %lanes ], [ %i.next, %lane ]
  %n = phi i64 [ %neuron, %lanes ], [ %n.next, %lane ]
  %r = phi i64 [ %run, %lanes ], [ %r.next, %lane ]
  %from = getelementptr {real}, ptr %values, i64 %n
  %each = load {real}, ptr %from
  %to = getelementptr {real}, ptr %all.at, i64 %i
  store {real} %each, ptr %to
  %r.more = add i64 %r, 1
  %turned = icmp eq i64 %r.more, %inner
  %r.next = select i1 %turned, i64 0, i64 %r.more
  %n.more = add i64 %n, 1
  %over = icmp eq i64 %n.more, %neurons
  %n.wrapped = select i1 %over, i64 0, i64 %n.more
  %n.next = select i1 %turned, i64 %n.wrapped, i64 %n
  %i.next = add i64 %i, 1
  %more = icmp slt i64 %i.next, %count
  br i1 %more, label %lane, label %done
done:
  %all = load {vector}, ptr %all.at
  ret {vector} %all
}}
"""


def task_entry(name: str, arguments: int, scratch: bool) -> list[str]:
    """Return the lines of a function of the address of a block, which does what tasks are left.

    Args:
        name: of the function; it calls ``@task(block, scratch, number)``.
        arguments: how many the kernel has, besides scratch.
        scratch: whether it has scratch, which comes last: an address and the bytes of a worker.
    """
    lines = ["  %scratch = inttoptr i64 0 to ptr"]
    if scratch:
        lines = [
            f"  %scratch.at = getelementptr i64, ptr %a, i64 {HEADER + arguments}",
            "  %scratch.all = load i64, ptr %scratch.at",
            f"  %stride.at = getelementptr i64, ptr %a, i64 {HEADER + arguments + 1}",
            "  %scratch.stride = load i64, ptr %stride.at",
            "  %scratch.off = mul i64 %own, %scratch.stride",
            "  %scratch.own = add i64 %scratch.all, %scratch.off",
            "  %scratch = inttoptr i64 %scratch.own to ptr",
        ]
    # the counters of the workers begin with a cache line
    counters = -(-(HEADER + arguments + 2 * scratch) // LINE) * LINE
    text = _TASK_ENTRY.format(name=name, scratch="\n".join(lines), line=LINE, counters=counters)
    return text.splitlines()


def serial_entry(name: str, arguments: int, scratch: bool) -> list[str]:
    """Return the lines of a function of the address of a block, which does one task of all lanes.

    Raises:
        ValueError: the kernel has scratch, which it does not get.
    """
    if scratch:
        raise ValueError(f"{name} needs scratch, which it does not get where it runs alone.")
    lines = [f"define void @{name}(ptr %a) {{", "  call void @task(ptr %a, ptr null, i64 0)"]
    return [*lines, "  ret void", "}"]


def spread_source(name: str, real: str, width: int, masked: bool) -> tuple[list[str], set[str]]:
    """Return a function that loads the value of each lane's neuron, or the one value of all.

    Masked, a block may have fewer lanes than its width; the others are not read.
    """
    vector = f"<{width} x {real}>"
    declared: set[str] = set()
    load = f"%block = load {vector}, ptr %there, align {4 if real == 'float' else 8}"
    if masked:
        size = 4 if real == "float" else 8
        counts = f"<{width} x i64>"
        numbers = ", ".join(f"i64 {i}" for i in range(width))
        intrinsic = f"@llvm.masked.load.v{width}f{8 * size}.p0"
        declared.add(f"declare {vector} {intrinsic}(ptr, i32, <{width} x i1>, {vector})")
        load = "\n  ".join(
            (
                f"%count0 = insertelement {counts} poison, i64 %count, i64 0",
                f"%counts = shufflevector {counts} %count0, {counts} poison, "
                f"<{width} x i32> zeroinitializer",
                f"%mask = icmp ult {counts} <{numbers}>, %counts",
                f"%block = call {vector} {intrinsic}(ptr %there, i32 {size}, "
                f"<{width} x i1> %mask, {vector} zeroinitializer)",
            )
        )
    text = _SPREAD.format(name=name, real=real, width=width, vector=vector, load=load)
    return text.splitlines(), declared
