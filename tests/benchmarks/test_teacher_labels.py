"""Counting how many of a teacher's labels are right."""

from benchmarks.teacher_labels import compare


def test_each_true_box_is_found_once_and_by_its_class():
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "categories": [{"id": 5, "name": "open"}, {"id": 6, "name": "short"}],
        "annotations": [
            {"image_id": 1, "category_id": 5, "bbox": [10, 10, 20, 20]},
            {"image_id": 1, "category_id": 6, "bbox": [60, 10, 20, 20]},
            {"image_id": 2, "category_id": 5, "bbox": [10, 10, 20, 20]},
        ],
    }
    found = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "open"}, {"id": 2, "name": "short"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [11, 10, 20, 20], "score": 0.9},  # right
            {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.8},  # again
            {"image_id": 1, "category_id": 1, "bbox": [60, 10, 20, 20], "score": 0.7},  # class
            {"image_id": 1, "category_id": 2, "bbox": [70, 10, 20, 20], "score": 0.6},  # a third
        ],
    }
    assert compare(truth, found) == {"images": 1, "labels": 4, "truths": 2, "right": 1}
