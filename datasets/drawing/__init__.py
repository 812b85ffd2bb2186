"""The drawn streets' pictures, in integers only: see `datasets.drawing.scene.draw`."""
