"""Drawing: training curves, reconstructions, attention maps, detections and segmentations."""
