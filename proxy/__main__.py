"""Stopgap until proxy/cli exists (lead): `python -m proxy serve --config F --port N`. To be replaced by the CLI."""
import sys
from pathlib import Path
from proxy import logs, server, settings, app
from proxy.redaction import Redactor
a = sys.argv
cfg = Path(a[a.index("--config") + 1]); flags = {"server.port": int(a[a.index("--port") + 1])} if "--port" in a else {}
try:
    s = settings.load(cfg, None, flags)
except settings.ConfigError as e:
    print(e, file=sys.stderr); sys.exit(78)
log = logs.configure(s.log, Redactor(s.secrets()))
code = server.serve(s, create_app=lambda st: app.create_app(st, log=log), reload=lambda: settings.load(cfg, None, flags))
log.close()
sys.exit(code)
