"""A DICOM archive on the loopback address: stores files by STOW-RS, and asks for them by QIDO-RS and WADO-RS.

    unshare --net python archive.py FOLDER FILE...    # prints what became of the files as JSON

Orthanc cannot be told which address to listen on, so this runs in a network namespace that has no other.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
NAMES = {"00080060": "modality", "0020000E": "series", "00201209": "count"}


def main(folder: Path, files: list[Path]) -> dict:
    interfaces = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    if interfaces != ["lo"]:
        raise SystemExit(f"expected no network interface but the loopback, got {interfaces}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    port = free_port()
    config = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "DicomServerEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    with (folder / "log").open("w") as log:
        orthanc = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        root = f"http://127.0.0.1:{port}/dicom-web"
        wait(root)
        stored = [store(root, path) for path in files]
        studies = query(f"{root}/studies")
        series = [
            {name: one.get(tag, {}).get("Value", [None])[0] for tag, name in NAMES.items()}
            for study in studies
            for one in query(f"{root}/studies/{study['0020000D']['Value'][0]}/series?includefield=00201209")
        ]
        return {"stored": sum(stored), "studies": len(studies), "series": series, "bytes": retrieved(root, studies)}
    finally:
        orthanc.kill()  # what it has stored is of no more use
        orthanc.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(root: str) -> None:
    for _ in range(300):
        try:
            query(f"{root}/studies")
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("Orthanc did not start")


def query(url: str) -> list[dict]:
    request = urllib.request.Request(url, headers={"Accept": "application/dicom+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def store(root: str, path: Path) -> bool:
    """Whether the archive took a file."""
    boundary = "between-the-parts"
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = head + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{root}/studies", body, headers), timeout=60) as answer:
            said = json.load(answer)
    except urllib.error.HTTPError:
        return False
    refused, taken = (said.get(tag, {}).get("Value", []) for tag in ("00081198", "00081199"))
    return len(taken) == 1 and not refused


def retrieved(root: str, studies: list[dict]) -> int:
    """Length of all that the archive gives back, as it is stored."""
    length, headers = 0, {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    for study in studies:
        request = urllib.request.Request(f"{root}/studies/{study['0020000D']['Value'][0]}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            length += len(answer.read())
    return length


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]])))
