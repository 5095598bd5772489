"""The limits of test_cfg that are missing, or that mmdetection does not read where they stand."""

from tests.weights.mmdet_config.configs import FASTER_RCNN, RETINANET, read
from tests.weights.mmdet_config.test_model import changed


def test_what_a_missing_limit_means_there_is_told():
    """Without nms_pre, 3.x keeps all candidates; without min_bbox_size, boxes of any size."""
    everything = changed("mmdet retinanet", "nms_pre=1000, min_bbox_size=0, ", "")
    found = read("mmdet retinanet", everything)
    assert found.report.whole
    assert "test" not in found.settings or "pre_nms" not in found.settings["test"]
    assert found.spec.lines({})[-2:] == [
        "  model.test_cfg has no nms_pre: all of a level's candidates enter its NMS there, the "
        "best test.pre_nms of them here (1000 unless asked otherwise)",
        "  model.test_cfg keeps boxes without width or height (no min_bbox_size of 0), which are "
        "dropped here",
    ]
    assert read("mmdet retinanet", everything, part="pyramid").spec.head_notes == ()  # no head
    below = changed("mmdet retinanet", "nms_pre=1000, min_bbox_size=0, ", "nms_pre=-1, ")
    assert "has an nms_pre of -1: all" in read("mmdet retinanet", below).spec.lines({})[-2]
    assert read("mmdet retinanet", RETINANET).spec.head_notes == ()
    regions = changed("mmdet faster_rcnn", "nms_pre=1000", "")
    (note,) = read("mmdet faster_rcnn", regions).spec.head_notes
    assert note.startswith("model.test_cfg.rpn has no nms_pre")
    assert "the best proposals.pre_nms_test of them here" in note


def test_limits_that_mmdetection_does_not_read_change_nothing():
    text = changed("mmdet faster_rcnn", "score_thr=0.05", "score_thr=0.05, nms_pre=7")
    text = text.replace("nms_pre=1000", "nms_pre=1000, score_thr=0.9")
    text = text.replace("type='nms'", "type='nms', split_thr=9, max_num=-1, offset=0")
    plain = read("mmdet faster_rcnn", FASTER_RCNN)
    found = read("mmdet faster_rcnn", text)
    assert found.settings == plain.settings
    assert found.spec.head_notes == ()
