"""Multiply rows by a square matrix in LLVM IR, by their events or densely.

The matrix comes in panels: all rows of its first columns, then all rows of the next ones, the last
panel padded with zeros. The sums of a panel stay in registers. Four rows share what is read of the
matrix, unless most of their values are zero: then each adds up the rows of the matrix where it is
not. Contraction is allowed, unlike in a step: no sum of products has an order that is promised.
"""

from __future__ import annotations

DENSE = 0.4  # share of values that are not zero from which the dense product is faster
_QUAD = 4  # rows that are multiplied together

_MULTIPLY = """\
define internal void @multiply(ptr noalias %source, ptr noalias %matrix, ptr noalias %target, \
i64 %rows, i64 %size) noinline {{
start:
  %all = mul i64 %size, {quad}
  %most = mul i64 %all, {dense}
  %events.most = add i64 %size, 1
  %events = alloca i64, i64 %events.most
  br label %next
next:
  %row = phi i64 [ 0, %start ], [ %row.quad, %dense ], [ %row.quad, %quad.done ], \
[ %row.one, %single ]
  %left = sub i64 %rows, %row
  %at = mul i64 %row, %size
  %from = getelementptr {real}, ptr %source, i64 %at
  %to = getelementptr {real}, ptr %target, i64 %at
  %row.quad = add i64 %row, {quad}
  %row.one = add i64 %row, 1
  %several = icmp sge i64 %left, {quad}
  br i1 %several, label %quad, label %rest
rest:
  %some = icmp sgt i64 %left, 0
  br i1 %some, label %single, label %end
single:
  call void @multiply_events(ptr %from, ptr %matrix, ptr %to, i64 %size, ptr %events)
  br label %next
quad:
  %count = call i64 @count_events(ptr %from, i64 %all)
  %percent = mul i64 %count, 100
  %is.dense = icmp sgt i64 %percent, %most
  br i1 %is.dense, label %dense, label %sparse
dense:
  call void @multiply_densely(ptr %from, ptr %matrix, ptr %to, i64 %size)
  br label %next
sparse:
  %r = phi i64 [ 0, %quad ], [ %r.next, %sparse ]
  %r.at = mul i64 %r, %size
  %r.from = getelementptr {real}, ptr %from, i64 %r.at
  %r.to = getelementptr {real}, ptr %to, i64 %r.at
  call void @multiply_events(ptr %r.from, ptr %matrix, ptr %r.to, i64 %size, ptr %events)
  %r.next = add i64 %r, 1
  %r.more = icmp slt i64 %r.next, {quad}
  br i1 %r.more, label %sparse, label %quad.done
quad.done:
  br label %next
end:
  ret void
}}

define internal i64 @count_events(ptr noalias %from, i64 %values) noinline {{
start:
  %whole = sdiv i64 %values, {narrow}
  %vectors.end = mul i64 %whole, {narrow}
  br label %vectors
vectors:
  %i = phi i64 [ 0, %start ], [ %i.next, %vector ]
  %found = phi i64 [ 0, %start ], [ %found.next, %vector ]
  %i.more = icmp slt i64 %i, %vectors.end
  br i1 %i.more, label %vector, label %rest
vector:
  %v.at = getelementptr {real}, ptr %from, i64 %i
  %v = load <{narrow} x {real}>, ptr %v.at, align {bytes}
  %v.is = fcmp une <{narrow} x {real}> %v, zeroinitializer
  %v.bits = bitcast <{narrow} x i1> %v.is to i{narrow}
  %v.count = call i{narrow} @llvm.ctpop.i{narrow}(i{narrow} %v.bits)
  %v.wide = zext i{narrow} %v.count to i64
  %found.next = add i64 %found, %v.wide
  %i.next = add i64 %i, {narrow}
  br label %vectors
rest:
  %j = phi i64 [ %vectors.end, %vectors ], [ %j.next, %one ]
  %sum = phi i64 [ %found, %vectors ], [ %sum.next, %one ]
  %j.more = icmp slt i64 %j, %values
  br i1 %j.more, label %one, label %end
one:
  %o.at = getelementptr {real}, ptr %from, i64 %j
  %o = load {real}, ptr %o.at
  %o.is = fcmp une {real} %o, 0.0
  %o.wide = zext i1 %o.is to i64
  %sum.next = add i64 %sum, %o.wide
  %j.next = add i64 %j, 1
  br label %rest
end:
  ret i64 %sum
}}

define internal void @multiply_events(ptr noalias %from, ptr noalias %matrix, ptr noalias %to, \
i64 %size, ptr noalias %events) noinline {{
start:
  br label %list
list:
  %k = phi i64 [ 0, %start ], [ %k.next, %list ]
  %count = phi i64 [ 0, %start ], [ %count.next, %list ]
  %event.at = getelementptr i64, ptr %events, i64 %count
  store i64 %k, ptr %event.at
  %v.at = getelementptr {real}, ptr %from, i64 %k
  %v = load {real}, ptr %v.at
  %v.is = fcmp une {real} %v, 0.0
  %v.one = zext i1 %v.is to i64
  %count.next = add i64 %count, %v.one
  %k.next = add i64 %k, 1
  %k.more = icmp slt i64 %k.next, %size
  br i1 %k.more, label %list, label %panels
panels:
  %low = phi i64 [ 0, %list ], [ %low.next, %store ]
  %more = icmp slt i64 %low, %size
  br i1 %more, label %panel, label %end
panel:
  %offset = mul i64 %low, %size
  %first = getelementptr {real}, ptr %matrix, i64 %offset
  br label %sum
sum:
  %e = phi i64 [ 0, %panel ], [ %e.next, %add ]
  %acc = phi {vector} [ zeroinitializer, %panel ], [ %acc.next, %add ]
  %e.more = icmp slt i64 %e, %count.next
  br i1 %e.more, label %add, label %store
add:
  %e.at = getelementptr i64, ptr %events, i64 %e
  %index = load i64, ptr %e.at
  %m.off = mul i64 %index, {panel}
  %m.at = getelementptr {real}, ptr %first, i64 %m.off
  %m = load {vector}, ptr %m.at, align {bytes}
  %a.at = getelementptr {real}, ptr %from, i64 %index
  %a = load {real}, ptr %a.at
  %a.0 = insertelement {vector} poison, {real} %a, i64 0
  %a.all = shufflevector {vector} %a.0, {vector} poison, <{panel} x i32> zeroinitializer
  %acc.next = call {vector} @llvm.fmuladd.{suffix}({vector} %a.all, {vector} %m, {vector} %acc)
  %e.next = add i64 %e, 1
  br label %sum
store:
  %mask = call <{panel} x i1> @panel_mask(i64 %low, i64 %size)
  %to.at = getelementptr {real}, ptr %to, i64 %low
  call void @llvm.masked.store.{suffix}.p0({vector} %acc, ptr %to.at, i32 {bytes}, \
<{panel} x i1> %mask)
  %low.next = add i64 %low, {panel}
  br label %panels
end:
  ret void
}}

define internal <{panel} x i1> @panel_mask(i64 %low, i64 %size) {{
  %left = sub i64 %size, %low
  %left.0 = insertelement <{panel} x i64> poison, i64 %left, i64 0
  %left.all = shufflevector <{panel} x i64> %left.0, <{panel} x i64> poison, \
<{panel} x i32> zeroinitializer
  %mask = icmp slt <{panel} x i64> <{numbers}>, %left.all
  ret <{panel} x i1> %mask
}}
"""


def _dense_source(real: str, panel: int, suffix: str, size: int) -> list[str]:
    """Return the function that multiplies four rows, a panel at a time."""
    vector = f"<{panel} x {real}>"
    rows = range(_QUAD)
    lines = [
        "define internal void @multiply_densely(ptr noalias %from, ptr noalias %matrix, "
        "ptr noalias %to, i64 %size) noinline {",
        "start:",
        *(f"  %at{r} = mul i64 %size, {r}" for r in rows),
        *(f"  %from{r} = getelementptr {real}, ptr %from, i64 %at{r}" for r in rows),
        *(f"  %to{r} = getelementptr {real}, ptr %to, i64 %at{r}" for r in rows),
        "  br label %panels",
        "panels:",
        "  %low = phi i64 [ 0, %start ], [ %low.next, %store ]",
        "  %more = icmp slt i64 %low, %size",
        "  br i1 %more, label %panel, label %end",
        "panel:",
        "  %offset = mul i64 %low, %size",
        f"  %first = getelementptr {real}, ptr %matrix, i64 %offset",
        "  br label %sum",
        "sum:",
        "  %k = phi i64 [ 0, %panel ], [ %k.next, %add ]",
    ]
    for r in rows:
        lines.append(
            f"  %acc{r} = phi {vector} [ zeroinitializer, %panel ], [ %acc{r}.next, %add ]"
        )
    lines += [
        "  %k.more = icmp slt i64 %k, %size",
        "  br i1 %k.more, label %add, label %store",
        "add:",
        f"  %m.off = mul i64 %k, {panel}",
        f"  %m.at = getelementptr {real}, ptr %first, i64 %m.off",
        f"  %m = load {vector}, ptr %m.at, align {size}",
    ]
    for r in rows:
        lines += [
            f"  %a{r}.at = getelementptr {real}, ptr %from{r}, i64 %k",
            f"  %a{r} = load {real}, ptr %a{r}.at",
            f"  %a{r}.0 = insertelement {vector} poison, {real} %a{r}, i64 0",
            f"  %a{r}.all = shufflevector {vector} %a{r}.0, {vector} poison, "
            f"<{panel} x i32> zeroinitializer",
            f"  %acc{r}.next = call {vector} @llvm.fmuladd.{suffix}({vector} %a{r}.all, "
            f"{vector} %m, {vector} %acc{r})",
        ]
    lines += [
        "  %k.next = add i64 %k, 1",
        "  br label %sum",
        "store:",
        f"  %mask = call <{panel} x i1> @panel_mask(i64 %low, i64 %size)",
    ]
    for r in rows:
        lines += [
            f"  %to{r}.at = getelementptr {real}, ptr %to{r}, i64 %low",
            f"  call void @llvm.masked.store.{suffix}.p0({vector} %acc{r}, ptr %to{r}.at, "
            f"i32 {size}, <{panel} x i1> %mask)",
        ]
    lines += [
        f"  %low.next = add i64 %low, {panel}",
        "  br label %panels",
        "end:",
        "  ret void",
        "}",
    ]
    return lines


def product_source(real: str, panel: int, narrow: int) -> tuple[list[str], set[str]]:
    """Return the functions, of which ``@multiply(source, matrix, target, rows, size)`` is called.

    Args:
        real: type of the values.
        panel: columns of a panel.
        narrow: values of a register.
    """
    size = 4 if real == "float" else 8
    vector, suffix = f"<{panel} x {real}>", f"v{panel}f{8 * size}"
    numbers = ", ".join(f"i64 {i}" for i in range(panel))
    text = _MULTIPLY.format(
        real=real,
        panel=panel,
        narrow=narrow,
        vector=vector,
        suffix=suffix,
        bytes=size,
        numbers=numbers,
        quad=_QUAD,
        dense=int(100 * DENSE),
    )
    declared = {
        f"declare {vector} @llvm.fmuladd.{suffix}({vector}, {vector}, {vector})",
        f"declare void @llvm.masked.store.{suffix}.p0({vector}, ptr, i32, <{panel} x i1>)",
        f"declare i{narrow} @llvm.ctpop.i{narrow}(i{narrow})",
    }
    return [*text.splitlines(), "", *_dense_source(real, panel, suffix, size)], declared
