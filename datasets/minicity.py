"""MiniCity: the few images of Cityscapes that a challenge on little data gives."""

from datasets.cityscapes import ENDS, Cityscapes


class MiniCity(Cityscapes):
    """MiniCity in the folders that the challenge's script makes: 200, 100 and 200 images.

    Train and val are images of Cityscapes' train, test is of its val and has no labels here; its
    images are NUMBER.png.

    Source: VIPriors challenge 2020 (VIPriors/vipriors-challenges-toolkit, semantic-segmentation/
        arrange_images.py and helpers/minicity.py).
    """

    name = "minicity"
    splits = ("train", "val", "test")
    layout = (
        "ROOT/leftImg8bit/SPLIT/*_leftImg8bit.png with labels in "
        "ROOT/gtFine/SPLIT/*_gtFine_labelIds.png; ROOT/leftImg8bit/test/*.png"
    )

    def find(self) -> list[tuple[str, str | None]]:
        ends = "" if self.split == "test" else ENDS
        return self.pair_up(self.walk_images(f"leftImg8bit/{self.split}", stem_ends=ends))
