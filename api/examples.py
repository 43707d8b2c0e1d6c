"""Reports as the API's description shows them: the five fields that are enough, and what the gateway sends."""

MINIMAL_REPORT = {
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.1.1",
    "PatientID": "98890234",
    "PatientName": "Doe^Peter",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1",
    "NumInstances": 7,
}
GATEWAY_REPORT = MINIMAL_REPORT | {
    "NumInstances": 2,
    "SOPInstanceUIDs": ["1.2.826.0.1.3680043.8.498.1.1.1", "1.2.826.0.1.3680043.8.498.1.1.2"],
    "Attributes": {"Modality": ["MR"], "SeriesDescription": ["T2 axial"]},
    "Revision": 1,
    "Verdict": "idle",
    "GatewayID": "gateway-1",
    "FirstReceivedAt": "2026-01-01T08:00:00Z",
    "LastReceivedAt": "2026-01-01T08:00:01Z",
}
EXAMPLES = {
    "minimal": {"summary": "The five fields that are enough", "value": MINIMAL_REPORT},
    "gateway": {"summary": "What the gateway sends", "value": GATEWAY_REPORT},
}
