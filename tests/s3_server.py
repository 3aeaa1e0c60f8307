"""A small S3-compatible server in memory, on the loopback interface: objects, ranges, listings and uploads in parts."""

import re
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *args):
        pass

    def handle_expect_100(self):
        done = super().handle_expect_100()
        self.wfile.flush()  # the client waits for it
        return done

    def _asked(self):
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        bucket, _, key = urllib.parse.unquote(address.path).lstrip("/").partition("/")
        return bucket, key, query

    def _answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, code, name):
        self._answer(code, f"<Error><Code>{name}</Code><Message>{name}</Message></Error>".encode(), Content_Type="application/xml")

    def _xml(self, root, inner):
        text = f'<?xml version="1.0" encoding="UTF-8"?><{root} xmlns="{NAMESPACE}">{inner}</{root}>'
        self._answer(200, text.encode(), Content_Type="application/xml")

    def _chunks(self):
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return data

    def _body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = self._chunks()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("x-amz-content-sha256", "").startswith("STREAMING"):  # chunks inside, with signatures or checksums
            out, rest = b"", data
            while rest:
                line, _, rest = rest.partition(b"\r\n")
                size = int(line.split(b";")[0], 16)
                if not size:
                    break
                out, rest = out + rest[:size], rest[size + 2 :]
            return out
        return data

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        bucket, key, query = self._asked()
        objects = self.server.objects
        if not key and self.command == "HEAD":
            return self._answer(200)
        if not key:
            return self._list(bucket, query)
        if (bucket, key) not in objects:
            return self._error(404, "NoSuchKey")
        data = objects[bucket, key]
        headers = {
            "ETag": f'"{hash(data) & 0xFFFFFFFF:x}"',
            "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
            "Accept_Ranges": "bytes",
        }
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first = int(found[1])
            last = min(int(found[2] or len(data) - 1), len(data) - 1)
            return self._answer(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}", **headers)
        return self._answer(200, data, Content_Length=len(data), **headers)

    def _list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        keys, folders = [], set()
        for held, key in sorted(self.server.objects):
            if held != bucket or not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                keys.append(key)
        inner = f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(keys)}</KeyCount><MaxKeys>1000</MaxKeys>"
        inner += f"<IsTruncated>false</IsTruncated><Delimiter>{escape(delimiter)}</Delimiter>"
        for key in keys:
            size = len(self.server.objects[bucket, key])
            inner += f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size>"
            inner += "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
        inner += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders))
        self._xml("ListBucketResult", inner)

    def do_PUT(self):
        bucket, key, query = self._asked()
        data = self._body()
        self.server.puts += 1
        if self.server.puts in self.server.refused:
            return self._error(403, "AccessDenied")
        if "uploadId" in query:
            self.server.uploads[query["uploadId"]][int(query["partNumber"])] = data
        elif key:
            self.server.objects[bucket, key] = data
        return self._answer(200, ETag='"0"')

    def do_POST(self):
        bucket, key, query = self._asked()
        self._body()
        if "uploads" in query:
            number = str(len(self.server.uploads))
            self.server.uploads[number] = {}
            inner = f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{number}</UploadId>"
            return self._xml("InitiateMultipartUploadResult", inner)
        parts = self.server.uploads.pop(query["uploadId"])
        self.server.objects[bucket, key] = b"".join(parts[n] for n in sorted(parts))
        return self._xml("CompleteMultipartUploadResult", f'<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><ETag>"0"</ETag>')

    def do_DELETE(self):
        bucket, key, query = self._asked()
        if "uploadId" in query:
            self.server.uploads.pop(query["uploadId"], None)
        else:
            self.server.objects.pop((bucket, key), None)
        self._answer(204)


@contextmanager
def s3_server(monkeypatch):
    """Serve; the environment points S3 clients there. Yields the server: `.objects` maps (bucket, key) to bytes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.objects, server.uploads, server.puts, server.refused = {}, {}, 0, set()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    values = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in (values | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(name, value)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
