"""What recipes are made of (`common`, `coco_2x`), and how one is found by its name (`finding`)."""
