"""What the cost table says of Arm's vector instructions is what a compiler emits for such cores."""

import re

import pytest
from programs import MAY_LACK

from quantable.base.errors import UserError
from quantable.cost.neon import INSTRUCTIONS, macs_per_instruction

ARMV7, ARMV8 = "armv7-linux-gnueabihf", "aarch64-linux-gnu"
CORES = [
    ("cortex-a9", ARMV7, "+neon", False),
    ("cortex-a53", ARMV8, "", False),
    ("cortex-a76", ARMV8, "", True),
    ("neoverse-n1", ARMV8, "", True),
]
# A dot product: operands as wide as they are kept, and added up in 16 or 32 bit.
DOT = """
define i{sums} @dot(ptr noalias %x, ptr noalias %w, i64 %n) {{
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %sum = phi i{sums} [0, %entry], [%added, %loop]
  %px = getelementptr i{operands}, ptr %x, i64 %i
  %pw = getelementptr i{operands}, ptr %w, i64 %i
  %xo = load i{operands}, ptr %px
  %wo = load i{operands}, ptr %pw
  {widened}
  %product = mul i{sums} %xs, %ws
  %added = add i{sums} %sum, %product
  %next = add nuw nsw i64 %i, 1
  %done = icmp eq i64 %next, %n
  br i1 %done, label %end, label %loop
end:
  ret i{sums} %added
}}"""


def generated(triple: str, core: str, features: str, operands: int, sums: int) -> str:
    """Assembly of a dot product, optimized for one core."""
    if MAY_LACK:
        pytest.importorskip(
            "llvmlite", reason="llvmlite, of the extra bench, has 170 MB: not in the lock"
        )
    from llvmlite import binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    one = "%{0}s = sext i{operands} %{0}o to i{sums}"
    if operands == sums:
        one = "%{0}s = add i{sums} %{0}o, 0"
    widened = "\n  ".join(one.format(v, operands=operands, sums=sums) for v in "xw")
    module = llvm.parse_assembly(DOT.format(operands=operands, sums=sums, widened=widened))
    target = llvm.Target.from_triple(triple)
    machine = target.create_target_machine(cpu=core, features=features, opt=3)
    module.triple, module.data_layout = triple, str(machine.target_data)
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = True
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return str(machine.emit_assembly(module))


def products(assembly: str) -> set[int]:
    """Products that each multiply-accumulate on a whole register of 128 bit adds up.

    >>> sorted(products("vmla.i16 q8, q10, q9; vmlal.s16 q8, d19, d18; sdot v0.4s, v4.16b, v2.16b"))
    [4, 8, 16]
    """
    armv7 = re.findall(r"\bvmla(l?)\.[is](\d+)\s+q", assembly)
    found = {(64 if long else 128) // int(bits) for long, bits in armv7}
    armv8 = re.findall(r"\b(mla|smlal2?|sdot)\s+v\d+\.(8h|4s)", assembly)
    return found | {int(lanes[0]) * (4 if name == "sdot" else 1) for name, lanes in armv8}


@pytest.mark.parametrize(("core", "triple", "features", "dotprod"), CORES, ids=lambda v: str(v))
def test_generated_code_adds_as_many_products(
    core: str, triple: str, features: str, dotprod: bool
) -> None:
    for sums in (16, 32):
        code = generated(triple, core, features, operands=16, sums=sums)
        assert products(code) == {macs_per_instruction(sums, 16, dotprod=dotprod)}
    narrow = products(generated(triple, core, features, operands=8, sums=16))
    assert narrow == {macs_per_instruction(16, 8, dotprod=dotprod)} == {8}
    if dotprod:  # without it, products of bytes are widened before they are added
        wide = generated(triple, core, features, operands=8, sums=32)
        assert "sdot" in wide
        assert products(wide) == {macs_per_instruction(32, 8, dotprod=True)} == {16}


def test_sums_of_16_bit_are_twice_as_many_without_the_extension_and_half_with() -> None:
    def ratio(*, dotprod: bool) -> float:
        of = [macs_per_instruction(bits, 8, dotprod=dotprod) for bits in (16, 32)]
        return of[0] / of[1]

    assert ratio(dotprod=False) == 2.0
    assert ratio(dotprod=True) == 0.5
    assert macs_per_instruction(12, 8, dotprod=False) == 8  # 12 bits lie in lanes of 16
    assert macs_per_instruction(17, 8, dotprod=False) == 4


def test_every_instruction_fills_a_register() -> None:
    for one in INSTRUCTIONS:
        assert one.macs * one.sum_bits == 128 * (4 if one.dotprod else 1)


@pytest.mark.parametrize("widths", [(33, 8), (16, 17), (1, 8)])
def test_widths_that_no_instruction_has_are_refused(widths: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=rf"sums of {widths[0]} bits, operands of {widths[1]}: a"):
        macs_per_instruction(*widths, dotprod=True)
