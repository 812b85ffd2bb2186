"""Mapillary Vistas: streets all over the world, in its own classes or in those of Cityscapes."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from datasets.base import IGNORE, Row
from datasets.cityscapes import ROWS, SHORT_NAMES, SUBSETS, CityscapesClasses
from datasets.labels import LabelTable
from datasets.tables import numbered
from engine import zips

# Of the release 1.2 (ids 0 to 65), and of 2.0 (ids 0 to 123)
NAMES = (
    "Bird, Ground Animal, Curb, Fence, Guard Rail, Barrier, Wall, Bike Lane, Crosswalk - Plain, "
    "Curb Cut, Parking, Pedestrian Area, Rail Track, Road, Service Lane, Sidewalk, Bridge, "
    "Building, Tunnel, Person, Bicyclist, Motorcyclist, Other Rider, Lane Marking - Crosswalk, "
    "Lane Marking - General, Mountain, Sand, Sky, Snow, Terrain, Vegetation, Water, Banner, "
    "Bench, Bike Rack, Billboard, Catch Basin, CCTV Camera, Fire Hydrant, Junction Box, Mailbox, "
    "Manhole, Phone Booth, Pothole, Street Light, Pole, Traffic Sign Frame, Utility Pole, Traffic "
    "Light, Traffic Sign (Back), Traffic Sign (Front), Trash Can, Bicycle, Boat, Bus, Car, "
    "Caravan, Motorcycle, On Rails, Other Vehicle, Trailer, Truck, Wheeled Slow, Car Mount, Ego "
    "Vehicle, Unlabeled"
)
COLOURS = (
    "a52a2a 00c000 c4c4c4 be9999 b4a5b4 5a7896 66669c 8040ff 8c8cc8 aaaaaa faaaa0 606060 e6968c "
    "804080 6e6e6e f423e8 966464 464646 96785a dc143c ff0000 ff0064 ff00c8 c88080 ffffff 40aa40 "
    "e6a032 4682b4 beffff 98fb98 6b8e23 00aa1e ffff80 fa001e 648cb4 dcdcdc dc8080 de2828 64aa1e "
    "282828 212121 6480a0 8e0000 466496 d2aa64 999999 808080 000050 faaa1e c0c0c0 dcdc00 8c8c14 "
    "770b20 9600ff 003c64 00008e 00005a 0000e6 005064 804040 00006e 000046 0000c0 202020 780a0a "
    "000000"
)
NAMES_2 = (
    "Bird, Ground Animal, Ambiguous Barrier, Concrete Block, Curb, Fence, Guard Rail, Barrier, "
    "Road Median, Road Side, Lane Separator, Temporary Barrier, Wall, Bike Lane, Crosswalk - "
    "Plain, Curb Cut, Driveway, Parking, Parking Aisle, Pedestrian Area, Rail Track, Road, Road "
    "Shoulder, Service Lane, Sidewalk, Traffic Island, Bridge, Building, Garage, Tunnel, Person, "
    "Person Group, Bicyclist, Motorcyclist, Other Rider, Lane Marking - Dashed Line, Lane Marking "
    "- Straight Line, Lane Marking - Zigzag Line, Lane Marking - Ambiguous, Lane Marking - Arrow "
    "(Left), Lane Marking - Arrow (Other), Lane Marking - Arrow (Right), Lane Marking - Arrow "
    "(Split Left or Straight), Lane Marking - Arrow (Split Right or Straight), Lane Marking - "
    "Arrow (Straight), Lane Marking - Crosswalk, Lane Marking - Give Way (Row), Lane Marking - "
    "Give Way (Single), Lane Marking - Hatched (Chevron), Lane Marking - Hatched (Diagonal), Lane "
    "Marking - Other, Lane Marking - Stop Line, Lane Marking - Symbol (Bicycle), Lane Marking - "
    "Symbol (Other), Lane Marking - Text, Lane Marking (only) - Dashed Line, Lane Marking (only) "
    "- Crosswalk, Lane Marking (only) - Other, Lane Marking (only) - Test, Mountain, Sand, Sky, "
    "Snow, Terrain, Vegetation, Water, Banner, Bench, Bike Rack, Catch Basin, CCTV Camera, Fire "
    "Hydrant, Junction Box, Mailbox, Manhole, Parking Meter, Phone Booth, Pothole, Signage - "
    "Advertisement, Signage - Ambiguous, Signage - Back, Signage - Information, Signage - Other, "
    "Signage - Store, Street Light, Pole, Pole Group, Traffic Sign Frame, Utility Pole, Traffic "
    "Cone, Traffic Light - General (Single), Traffic Light - Pedestrians, Traffic Light - General "
    "(Upright), Traffic Light - General (Horizontal), Traffic Light - Cyclists, Traffic Light - "
    "Other, Traffic Sign - Ambiguous, Traffic Sign (Back), Traffic Sign - Direction (Back), "
    "Traffic Sign - Direction (Front), Traffic Sign (Front), Traffic Sign - Parking, Traffic Sign "
    "- Temporary (Back), Traffic Sign - Temporary (Front), Trash Can, Bicycle, Boat, Bus, Car, "
    "Caravan, Motorcycle, On Rails, Other Vehicle, Trailer, Truck, Vehicle Group, Wheeled Slow, "
    "Water Valve, Car Mount, Dynamic, Ego Vehicle, Ground, Static, Unlabeled"
)
COLOURS_2 = (
    "a52a2a 00c000 faaa1f faaa20 c4c4c4 be9999 b4a5b4 5a7896 faaa21 faaa22 808080 faaa23 66669c "
    "8040ff 8c8cc8 aaaaaa faaa24 faaaa0 faaa25 606060 e6968c 804080 6e6e6e 6e6e6e f423e8 80c480 "
    "966464 464646 969696 96785a dc143c dc143c ff0000 ff0064 ff00c8 ffffff ffffff faaa1d faaa1c "
    "faaa1a faaa19 faaa18 faaa16 faaa15 faaa14 ffffff faaa13 faaa12 faaa0c faaa0b ffffff ffffff "
    "faaa10 faaa0f faaa0f ffffff ffffff ffffff ffffff 40aa40 e6a032 4682b4 beffff 98fb98 6b8e23 "
    "00aa1e ffff80 fa001e 648cb4 dc8080 de2828 64aa1e 282828 212121 6480a0 1414ff 8e0000 466496 "
    "faab1e faac1e faad1e faae1e faaf1e fab01e d2aa64 999999 999999 808080 000050 d23c3c faaa1e "
    "faaa1e faaa1e faaa1e faaa1e faaa1e c0c0c0 c0c0c0 c0c0c0 dcdc00 dcdc00 0000c4 c0c0c0 dcdc00 "
    "8c8c14 770b20 9600ff 003c64 00008e 00005a 0000e6 005064 804040 00006e 000046 00008e 0000c0 "
    "aaaaaa 202020 6f4a00 780a0a 510051 6f6f00 000000"
)
# The classes of Cityscapes, by what the releases call them. Those of 1.2 are RobustNet's.
SHARED = {
    "road": "Road, Lane Marking - General, Manhole",
    "sidewalk": "Curb, Sidewalk",
    "building": "Building",
    "wall": "Wall",
    "fence": "Fence",
    "pole": "Pole, Utility Pole",
    "traffic light": "Traffic Light",
    "traffic sign": "Traffic Sign (Front)",
    "vegetation": "Vegetation",
    "terrain": "Terrain",
    "sky": "Sky",
    "person": "Person",
    "rider": "Bicyclist, Motorcyclist, Other Rider",
    "car": "Car",
    "truck": "Truck",
    "bus": "Bus",
    "train": "On Rails",
    "motorcycle": "Motorcycle",
    "bicycle": "Bicycle",
}
# What 2.0 has divided: beginnings of its names. Crosswalks are none of 1.2's general markings.
DIVIDED = {
    "Lane Marking": "road",
    "Traffic Light - ": "traffic light",
    "Traffic Sign - Direction (Front)": "traffic sign",
    "Traffic Sign - Parking": "traffic sign",
    "Traffic Sign - Temporary (Front)": "traffic sign",
    "Person Group": "person",
}
VERSIONS = {
    "v1.2": numbered(NAMES, COLOURS, ignored=1),
    "v2.0": numbered(NAMES_2, COLOURS_2, ignored=1),
}
SPLITS = {"train": "training", "val": "validation", "test": "testing"}


class Mapillary(CityscapesClasses):
    """Mapillary Vistas in the folders of its download; 18000, 2000 and 5000 images.

    Option `version` of the labels: `v1.2` or `v2.0`. Option `classes`: `cityscapes` maps to the
    19 train ids, everything else ignored; `own` keeps the 65 or 123 classes.

    Deviation: RobustNet's mapping is one of 1.2; that of 2.0 is this project's, with the parts of
    each divided class put together again (`DIVIDED`).

    Source: Neuhold et al. 2017; names and colours of open-mmlab/mmsegmentation, mmseg/datasets/
        mapillary.py; mapping of shachoi/RobustNet, datasets/mapillary.py.
    """

    name = "mapillary"
    splits = tuple(SPLITS)
    layout = (
        "ROOT/{training,validation,testing}/images/*.jpg with labels of the same name in "
        "ROOT/*/v1.2/labels/*.png (or ROOT/*/labels/*.png), or in ROOT/*/v2.0/labels/*.png"
    )
    options: ClassVar[dict[str, Any]] = CityscapesClasses.options | {
        "version": tuple(VERSIONS),
        "classes": ("cityscapes", "own"),
    }

    def open_root(self, root: str | Path | None) -> None:
        """Check the folders and choose the class table."""
        super().open_root(root)
        own = VERSIONS[self.option["version"]]
        if self.option["classes"] == "own":
            self.rows, self.raw_to_train = own, None
            self.subsets, self.short_names = {}, {}
        else:
            self.rows, self.raw_to_train = ROWS, as_cityscapes(own)
            self.subsets, self.short_names = SUBSETS, SHORT_NAMES

    def use_table(self, rows: Sequence[Row]) -> None:
        """Derive what the class table says; the colours in files are those of the release."""
        super().use_table(rows)
        if self.option["label_kind"] == "labelIds":
            colours = tuple((row.colour, row.id) for row in VERSIONS[self.option["version"]])
            self.label_table = LabelTable(colours, tuple(self.lookup.tolist()))

    def find(self) -> list[tuple[str, str | None]]:
        return self.pair_up(self.walk_images(self.image_folders()[0]))

    def image_folders(self) -> list[str]:
        return [f"{SPLITS[self.split]}/images"]

    def label_of(self, image: str) -> str:
        path = PurePosixPath(image)
        folder = f"{path.parent.parent}/{self.option['version']}/labels"
        if self.option["version"] == "v1.2" and not zips.is_dir(self.label_root / folder):
            folder = f"{path.parent.parent}/labels"  # of releases that had no other
        return f"{folder}/{path.stem}.png"


def as_cityscapes(own: Sequence[Row]) -> dict[int, int]:
    """Return a release's ids -> train ids of Cityscapes."""
    train_id = {row.name: row.train_id for row in ROWS}
    class_of = {one: name for name, ones in SHARED.items() for one in ones.split(", ")}
    table = {}
    for row in own:
        name = class_of.get(row.name)
        if name is None and "Crosswalk" not in row.name:
            name = next((to for start, to in DIVIDED.items() if row.name.startswith(start)), None)
        table[row.id] = IGNORE if name is None else train_id[name]
    return table
