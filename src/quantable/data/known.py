"""Classes of public sets in the order of their labels, and what tells a set from others."""

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from quantable.base.errors import UserError, unknown

PUBLIC = {
    "CIFAR-10": "airplane automobile bird cat deer dog frog horse ship truck",
    "CIFAR-100": """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
        kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
        mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
        plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
        shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
        tank telephone television tiger tractor train trout tulip turtle wardrobe whale
        willow_tree wolf woman worm
    """,
    "Fashion-MNIST": (
        "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle_boot"
    ),
    "STL-10": "airplane bird car cat deer dog horse monkey ship truck",
    "Tiny-ImageNet": """
        n01443537 n01629819 n01641577 n01644900 n01698640 n01742172 n01768244 n01770393 n01774384
        n01774750 n01784675 n01855672 n01882714 n01910747 n01917289 n01944390 n01945685 n01950731
        n01983481 n01984695 n02002724 n02056570 n02058221 n02074367 n02085620 n02094433 n02099601
        n02099712 n02106662 n02113799 n02123045 n02123394 n02124075 n02125311 n02129165 n02132136
        n02165456 n02190166 n02206856 n02226429 n02231487 n02233338 n02236044 n02268443 n02279972
        n02281406 n02321529 n02364673 n02395406 n02403003 n02410509 n02415577 n02423022 n02437312
        n02480495 n02481823 n02486410 n02504458 n02509815 n02666196 n02669723 n02699494 n02730930
        n02769748 n02788148 n02791270 n02793495 n02795169 n02802426 n02808440 n02814533 n02814860
        n02815834 n02823428 n02837789 n02841315 n02843684 n02883205 n02892201 n02906734 n02909870
        n02917067 n02927161 n02948072 n02950826 n02963159 n02977058 n02988304 n02999410 n03014705
        n03026506 n03042490 n03085013 n03089624 n03100240 n03126707 n03160309 n03179701 n03201208
        n03250847 n03255030 n03355925 n03388043 n03393912 n03400231 n03404251 n03424325 n03444034
        n03447447 n03544143 n03584254 n03599486 n03617480 n03637318 n03649909 n03662601 n03670208
        n03706229 n03733131 n03763968 n03770439 n03796401 n03804744 n03814639 n03837869 n03838899
        n03854065 n03891332 n03902125 n03930313 n03937543 n03970156 n03976657 n03977966 n03980874
        n03983396 n03992509 n04008634 n04023962 n04067472 n04070727 n04074963 n04099969 n04118538
        n04133789 n04146614 n04149813 n04179913 n04251144 n04254777 n04259630 n04265275 n04275548
        n04285008 n04311004 n04328186 n04356056 n04366367 n04371430 n04376876 n04398044 n04399382
        n04417672 n04456115 n04465501 n04486054 n04487081 n04501370 n04507155 n04532106 n04532670
        n04540053 n04560804 n04562935 n04596742 n04597913 n06596364 n07579787 n07583066 n07614500
        n07615774 n07695742 n07711569 n07715103 n07720875 n07734744 n07747607 n07749582 n07753592
        n07768694 n07871810 n07873807 n07875152 n07920052 n09193705 n09246464 n09256479 n09332890
        n09428293 n12267677
    """,
}
OF_SET = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST",
    "fashion_mnist_mini": "Fashion-MNIST",
    "tiny_imagenet": "Tiny-ImageNet",
    "imagenet": "ImageNet",
}
# Training images of each digit; the sets that are like it have as many of each class.
MNIST_COUNTS = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)

# Training images of a complete set, and their mean pixel for each channel, of 1.
TRAINED_ON = {
    "cifar10": (50_000, (0.4914, 0.4822, 0.4465)),
    "cifar100": (50_000, (0.5071, 0.4865, 0.4409)),
    "fashion_mnist": (60_000, (0.2860,)),
    "tiny_imagenet": (100_000, (0.4802, 0.4481, 0.3975)),
}
MEAN_OFF = 0.02  # of a copy; Kuzushiji-MNIST is 0.09 from Fashion-MNIST, SVHN 0.05 from CIFAR-10

# SHA-256 of the published training labels, one byte each, in the order of the IDX file.
IDX_LABELS = {"fashion_mnist": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"}


@cache
def classes_of(title: str) -> Sequence[str]:
    """Names of a public set's classes in the order of their labels; none of another set."""
    if title != "ImageNet":
        return PUBLIC.get(title, "").split()
    timm = find_spec("timm")  # found, not imported: that takes seconds, and torch
    assert timm is not None
    assert timm.origin is not None
    return (Path(timm.origin).parent / "data/_info/imagenet_synsets.txt").read_text().split()


def plain(name: str) -> str:
    """A name as the hubs' spellings have it in common.

    >>> plain("T - shirt / top"), plain("T-shirt/top"), plain("Ankle_boot")
    ('tshirttop', 'tshirttop', 'ankleboot')
    """
    return re.sub(r"[\W_]", "", name).lower()


def in_order(names: Sequence[str]) -> list[str]:
    """Sorted; by their numbers where the names differ in nothing else.

    >>> in_order(["10", "9"]), in_order(["class10", "class9"]), in_order(["b10", "a9", "b9"])
    (['9', '10'], ['class9', 'class10'], ['a9', 'b10', 'b9'])
    """
    numbers = _numbers_in(names)
    if numbers is None:
        return sorted(names)
    return sorted(names, key=lambda name: (numbers[name], name))


def _numbers_in(names: Sequence[str]) -> dict[str, int] | None:
    """The number in each name, where the names differ in nothing else."""
    found = [match for name in names if (match := re.fullmatch(r"(\D*)(\d+)", name, re.ASCII))]
    if len(found) < len(names) or len({match[1] for match in found}) != 1:
        return None
    return {match[0]: int(match[2]) for match in found}


def _say_nothing(names: Sequence[str]) -> bool:
    """Whether the classes are merely counted.

    >>> _say_nothing(["1", "0"]), _say_nothing(["class2", "class1"]), _say_nothing(["n01", "n07"])
    (True, True, False)
    """
    numbers = sorted((_numbers_in(names) or {}).values())
    return bool(numbers) and numbers == [*range(numbers[0], numbers[0] + len(names))]


def class_numbers(
    set_id: str, title: str, count: int, names: Sequence[str], where: str, *, by_name: bool = False
) -> list[int]:
    """The label of each class in ``names``, which are in a copy's own order.

    Known names have the set's own numbers, however many of them are there. Names that say nothing
    are numbered as they come, so all ``count`` have to be there; names of another set are refused.
    So are names of no set that is known, where the copy's order is but that of the names
    (``by_name``): labels that are stored are numbers of their own.
    """
    known = classes_of(OF_SET.get(set_id, ""))
    number = {plain(name): i for i, name in enumerate(known)} if len(known) == count else {}
    numbers = [number.get(plain(name)) for name in names]
    if all(found is not None for found in numbers):
        return [found for found in numbers if found is not None]
    if number and (other := whose(names)):
        raise UserError(f"{where}: its classes are those of {other}, expected those of {title}")
    if any(found is not None for found in numbers):
        name = next(name for name, found in zip(names, numbers, strict=True) if found is None)
        raise unknown("class", name, known, where)
    if len(names) != count:
        few = "; without all of them they have no numbers" if len(names) < count else ""
        raise UserError(f"{where}: {len(names)} classes, {title} has {count}{few}")
    if number and by_name and not _say_nothing(names):
        raise UserError(
            f"{where}: its classes, such as '{names[0]}', are not those of {title}, such as "
            f"'{known[0]}': give the folders its names, or numbers in its order"
        )
    return list(range(count))


def whose(names: Sequence[str]) -> str | None:
    """The public set to which all these classes belong.

    >>> whose(["monkey", "car"]), whose(["monkey", "cow"])
    ('STL-10', None)
    """
    mine = {plain(name) for name in names}
    found = (title for title in PUBLIC if mine <= {plain(name) for name in classes_of(title)})
    return next(found, None) if mine else None


def check_mean(set_id: str, title: str, images: np.ndarray, n_train: int, where: str) -> None:
    """Raise where training images (n, h, w, c) of a complete set are too light or dark for it.

    Names of classes and labels do not always tell two sets apart. ``images`` are a random choice of
    the ``n_train``; so many standard errors are allowed that chance refuses nothing.
    """
    complete, published = TRAINED_ON.get(set_id, (0, ()))
    if n_train != complete:
        return
    each = images[:4000].mean((1, 2)) / 255
    mean = each.mean(0)
    allowed = MEAN_OFF + 6 * each.std(0) / len(each) ** 0.5
    if (np.abs(mean - published) > allowed).any():
        found, expected = (" ".join(f"{x:.3f}" for x in of) for of in (mean, published))
        raise UserError(
            f"{where}: the mean pixel of its training images is {found}, that of {title} "
            f"{expected}: it is another set"
        )


def looks_like(labels: np.ndarray) -> str | None:
    """The public set that the labels of training images tell by their number.

    >>> looks_like(np.arange(100)), looks_like(np.arange(10))
    ('CIFAR-100', None)
    """
    counts = np.unique(labels, return_counts=True)[1].tolist()
    if tuple(counts) == MNIST_COUNTS:
        return "MNIST"
    by_classes = {100: "CIFAR-100", 200: "Tiny-ImageNet", 1000: "ImageNet"}
    return by_classes.get(len(counts))
