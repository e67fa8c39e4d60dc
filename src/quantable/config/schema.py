"""Every key of a run's config, with its type and range."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationInfo,
    field_validator,
)

from quantable.base.bits import FLOAT_BITS
from quantable.base.strict import Strict
from quantable.store.record import Epoch


class _Open(BaseModel):
    """A block whose other keys belong to the network, data set or method it configures."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)


Width = Annotated[int, Field(ge=1, le=FLOAT_BITS)]
NumberName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
Signature = Annotated[str, Field(pattern="^[0-9a-f]{12}$")]


class BitsConfig(Strict):
    """Bit-widths by place: ``[weight, activation]``; those of a file win over all others."""

    file: str | None
    inner: tuple[Width, Width]
    ends: tuple[Width, Width] | None
    layers: dict[str, tuple[Width, Width]]
    accumulator: int | None = Field(default=None, ge=2, le=FLOAT_BITS)  # of every sum


class OptimizerConfig(_Open):
    """An optimizer; its other keywords are its own."""

    lr: float = Field(gt=0)


class SmallImages(Strict):
    """Training images of ``pixels`` a side in the first ``share`` of the first phase's epochs."""

    pixels: int = Field(ge=1)
    share: float = Field(gt=0, lt=1)


class RecipeConfig(Strict):
    """What the training loop does; with 0 epochs nothing is trained."""

    epochs: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    weight_decay_by_bits: dict[int, float] | None
    weight_decay_of: Literal["weights"] | None = None  # of layers; null: of all parameters
    small_images: SmallImages | None = None
    precision: Literal["32-true", "bf16-mixed"]
    compile: bool
    channels_last: bool
    optimizer: OptimizerConfig | None
    schedule: dict[str, Any] | None
    batch_norms: Literal["kept"] | None = None  # in calibration; null measures them anew
    version: int | None = None  # of the calibration; null is what it was before it had one


class BudgetConfig(Strict):
    """How much of the paper's size a run has."""

    name: Literal["paper", "gpu", "cpu", "smoke"]


class TrainerConfig(Strict):
    """Machine settings."""

    accelerator: Literal["auto", "cpu", "gpu"]
    threads: int | None = Field(ge=1)
    checkpoint_seconds: float = Field(gt=0)
    devices: int = Field(ge=1)


class InlineConfig(Strict):
    """One cell after the other in this process."""

    name: Literal["inline"]


class PoolConfig(Strict):
    """Cells side by side on this machine, each in a process of its own."""

    name: Literal["pool"]
    workers: int | None = Field(ge=1)
    memory_gib: float = Field(gt=0)
    retries: int = Field(ge=0)


Text = str | StrictInt | list[str | StrictInt]  # SLURM's names may be numbers, and lists
USEFUL_SECONDS = 120  # less than this between a job's begin and its signal, and it loads in vain


class SlurmConfig(Strict):
    """Cells as jobs of a SLURM cluster, submitted in arrays."""

    name: Literal["slurm"]
    partition: Text | None
    account: Text | None
    qos: Text | None
    constraint: Text | None
    gpus: int = Field(ge=0)
    cpus: int = Field(ge=1)
    memory_gib: float | None = Field(gt=0)
    minutes: int | None = Field(ge=1)
    max_parallel: int = Field(ge=1)
    signal_seconds: int = Field(ge=1)
    retries: int = Field(ge=0)
    container: str | None
    setup: list[str]
    more: dict[str, str | StrictBool | int | float | list[str | StrictInt]]

    @field_validator("signal_seconds")
    @classmethod
    def _time_to_work(cls, signal_seconds: int, info: ValidationInfo) -> int:
        minutes = info.data.get("minutes")
        if minutes is not None and minutes * 60 - signal_seconds < USEFUL_SECONDS:
            left = max(minutes * 60 - signal_seconds, 0)
            least = -(-(signal_seconds + USEFUL_SECONDS) // 60)
            raise ValueError(
                f"with executor.minutes={minutes} a job is told to stop after {left} s, most of "
                f"which it takes to begin; take executor.minutes={least} at least"
            )
        return signal_seconds


class LoggerConfig(Strict):
    """A project of Weights & Biases that runs are streamed to."""

    project: str = Field(min_length=1)
    entity: str | None
    tags: list[str]


class HardwareConfig(Strict):
    """Which constants the cost models use."""

    energy: str
    pim: str
    pim_rounding: Literal["up", "nearest", "down"]


class ModelConfig(_Open):
    """A network: its name, and the keywords of its builder."""

    name: str
    net: dict[str, Any]


class DataConfig(_Open):
    """A data set."""

    id: str
    title: str
    root: str
    part: StrictBool
    classes: int = Field(ge=2)
    input_size: tuple[int, int, int]


class OwnNumber(Strict):
    """A number of one method that each epoch's line has, and how it is shown."""

    title: str = Field(min_length=1)
    unit: str = Field(min_length=1)  # "1" where there is none
    decimals: int = Field(ge=0)
    by: Literal["layer"] | None = None  # one number, or one for each of some layers


class Looks(Strict):
    """How a series looks in every figure: a name for its key, and a line with marks.

    ``marker`` is one of matplotlib's letters; ``dash`` alternates lengths of line and gap.
    """

    short: str
    colour: str = Field(pattern="^#[0-9A-F]{6}$")
    marker: Literal["o", "s", "^", "v", ">", "<", "D", "P", "X", "*"]
    dash: tuple[float, ...] = ()


class QuantizerConfig(_Open):
    """A method; ``version`` is raised whenever its numbers change."""

    version: int
    looks: Looks
    learns_bits: bool
    callback: dict[str, Any] | None
    numbers: dict[NumberName, OwnNumber] = {}

    @field_validator("numbers")
    @classmethod
    def _no_name_twice(cls, numbers: dict[str, OwnNumber]) -> dict[str, OwnNumber]:
        if both := sorted(numbers.keys() & Epoch.model_fields.keys()):
            raise ValueError(f"every epoch's line has '{both[0]}'; choose another name")
        return numbers


class SearchConfig(Strict):
    """A rule that measures what lower bits would cost, item by item."""

    version: int
    looks: Looks
    low: tuple[Width, Width]
    links: list[list[str]] | None
    rule: dict[str, Any]


class RunConfig(Strict):
    """Everything that decides one run (``conf/run.yaml``)."""

    model: ModelConfig
    data: DataConfig
    quantizer: QuantizerConfig
    bits: BitsConfig
    recipe: RecipeConfig
    budget: BudgetConfig
    trainer: TrainerConfig
    executor: Annotated[InlineConfig | PoolConfig | SlurmConfig, Field(discriminator="name")]
    logger: LoggerConfig | None
    hardware: HardwareConfig
    start: Signature | None
    teacher: Signature | None
    search: SearchConfig | None
    seed: int = Field(ge=0)
    objective: str | Annotated[list[str], Field(min_length=1)]
    store: str
