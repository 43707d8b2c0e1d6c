#!/usr/bin/env python3
"""Whether Orthanc reads its database."""

import urllib.request

urllib.request.urlopen("http://localhost:8042/changes?last", timeout=10)
