//! The control API for tools that speak plain HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use crate::bench::{Bench, PATIENCE, eventually, free_address, terminate};

/// A proxy that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended in the course of the test.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a request, and gives the status and the body of the answer.
fn ask(mut stream: impl Read + Write, request: &str, headers: &str) -> (u16, String) {
    write!(stream, "{request} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status.unwrap_or_else(|| panic!("{answer:?}")), body.unwrap_or_default())
}

#[test]
fn a_loopback_port_wants_its_token() {
    let bench = Bench::new();
    let _node = bench.node();
    let address = free_address();
    let mut command = bench.command(&["api", "proxy", "--listen", &address]);
    let mut proxy = Running(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut token = String::new();
    BufReader::new(proxy.0.stdout.take().unwrap()).read_line(&mut token).unwrap();
    let bearer = format!("Authorization: Bearer {}\r\n", token.trim());
    let connect = || {
        let stream = std::net::TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let (status, body) = ask(connect(), "GET /v1/cluster", &bearer);
    assert!(status == 200 && body.contains("cluster_id"), "{status} {body}");
    for headers in ["", "Authorization: Bearer \r\n", &bearer.replace("Bearer ", "Bearer 0")] {
        let (status, body) = ask(connect(), "GET /v1/cluster", headers);
        assert!(
            status == 401 && !body.contains("cluster_id") && body.contains("token"),
            "{headers:?}: {status} {body}"
        );
    }
    let (status, body) = ask(connect(), "GET /v1/vms/nobody", &bearer);
    assert!(status == 404 && body.contains("not_found"), "{status} {body}");
    assert_eq!(ask(connect(), "PUT /v1/vms", &bearer).0, 405);
    let (status, body) = ask(connect(), "POST /v1/blobs", &bearer);
    assert!(status == 400 && body.contains("empty"), "an upload of nothing: {status} {body}");
    bench.run(&["image", "import", "--name", "tiny", &bench.disk("d.raw", 0)]).ends_with(0);
    bench.run(&["image", "import", "--name", "spare", &bench.disk("e.raw", 1)]).ends_with(0);
    bench.run(&["vm", "create", "web", "--image", "tiny", "--no-start"]).ends_with(0);
    let one_id = format!("{bearer}x-blixard-request: {}\r\n", "ab".repeat(16));
    assert_eq!(ask(connect(), "DELETE /v1/images/spare", &one_id).0, 200);
    let (status, body) = ask(connect(), "POST /v1/vms/web/start", &one_id);
    assert!(status == 409 && body.contains("an id of its own"), "the id of another request: {status} {body}");
    bench.run(&["api", "proxy", "--listen", "0.0.0.0:0"]).ends_with(2);
}

#[test]
fn a_socket_file_is_its_users_and_goes_with_the_proxy() {
    let bench = Bench::new();
    let _node = bench.node();
    let path = bench.path("api.sock");
    let mut proxy =
        Running(bench.command(&["api", "proxy", "--socket", "api.sock"]).stderr(Stdio::null()).spawn().unwrap());
    let stream = eventually("the socket", || std::os::unix::net::UnixStream::connect(&path).ok());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let (status, body) = ask(stream, "GET /v1/vms?stale=true", "");
    assert!(status == 200 && body.contains("[]"), "{status} {body}");
    terminate(&proxy.0);
    eventually("its end", || proxy.0.try_wait().unwrap());
    // A proxy that was killed leaves its file; the next one takes its place.
    let again =
        Running(bench.command(&["api", "proxy", "--socket", "api.sock"]).stderr(Stdio::null()).spawn().unwrap());
    eventually("the socket", || std::os::unix::net::UnixStream::connect(&path).ok());
    super::program::signal(&again.0, nix::sys::signal::Signal::SIGINT);
    eventually("its file to go", || (!path.exists()).then_some(()));
}
