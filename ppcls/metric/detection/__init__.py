"""Detection metrics: all detections of a data set against its true objects."""

from ppcls.metric.detection.coco_ap import (
    COCOMetric,
    CocoResult,
    coco_ap,
    coco_results,
    write_coco_results,
)
from ppcls.metric.detection.registry import (
    DETECTION_METRICS,
    DetectionMetric,
    build_detection_metrics,
)
from ppcls.metric.detection.types import (
    AnnotatedImages,
    CocoImages,
    Detections,
    Objects,
    no_detections,
    split_rows,
)
from ppcls.metric.detection.voc_map import (
    VOCMetric,
    VocResult,
    check_file_names,
    voc_map,
    write_voc_results,
)

__all__ = [
    "DETECTION_METRICS",
    "AnnotatedImages",
    "COCOMetric",
    "CocoImages",
    "CocoResult",
    "DetectionMetric",
    "Detections",
    "Objects",
    "VOCMetric",
    "VocResult",
    "build_detection_metrics",
    "check_file_names",
    "coco_ap",
    "coco_results",
    "no_detections",
    "split_rows",
    "voc_map",
    "write_coco_results",
    "write_voc_results",
]
