/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The test server: a web-platform-tests tree and closures, over HTTPS with a certificate
//! authority of its own, under several host names, on loopback.

mod files;
mod http;
mod template;
mod tls;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

use self::files::Files;
pub(crate) use self::files::ScriptMeta;
use self::http::{ReadError, read_request, write_response};
pub use self::http::{Request, Response};
use self::template::Context;

/// The main host name of web-platform-tests.
pub const HOST: &str = "web-platform.test";
/// Their other site.
pub const ALTERNATE_HOST: &str = "not-web-platform.test";

/// Subdomains that both sites have.
const SUBDOMAINS: [&str; 3] = ["www", "www1", "www2"];
/// Connections at one time; more are turned away.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may stay silent.
const IDLE: Duration = Duration::from_secs(30);

type Handler = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

struct Route {
    host: Option<String>,
    path: String,
    handler: Handler,
}

struct Shared {
    files: Files,
    routes: Mutex<Vec<Route>>,
    https: Vec<u16>,
    http: Vec<u16>,
    stopping: AtomicBool,
    connections: AtomicUsize,
}

/// A running server. It stops when dropped.
pub struct Server {
    shared: Arc<Shared>,
    hosts: Vec<String>,
    directory: TempDir,
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Server")
            .field("https", &self.shared.https)
            .finish_non_exhaustive()
    }
}

/// What a server shall offer; see [`Server::builder`].
#[derive(Default)]
pub struct Builder {
    files: Files,
    hosts: Vec<String>,
}

impl Builder {
    /// Serves the files below `directory` under the path `prefix` (it ends in a slash). Of several,
    /// the first that has the file wins.
    pub fn root(mut self, prefix: &str, directory: impl Into<PathBuf>) -> Builder {
        self.files.roots.push((prefix.to_owned(), directory.into()));
        self
    }

    /// Serves one file under this exact path.
    pub fn mount(mut self, path: &str, file: impl Into<PathBuf>) -> Builder {
        self.files.mounts.insert(path.to_owned(), file.into());
        self
    }

    /// Adds a host name to the certificate and the host file.
    pub fn host(mut self, name: &str) -> Builder {
        self.hosts.push(name.to_owned());
        self
    }

    /// Starts on two free HTTPS ports and a free HTTP port of the loopback interface.
    ///
    /// # Errors
    /// If a port, a file or the certificate could not be made.
    pub fn start(self) -> io::Result<Server> {
        let mut hosts = self.hosts;
        for site in [HOST, ALTERNATE_HOST] {
            hosts.push(site.to_owned());
            hosts.extend(SUBDOMAINS.iter().map(|name| format!("{name}.{site}")));
        }
        let directory = tempfile::tempdir()?;
        let mut names = hosts.clone();
        names.push("localhost".to_owned());
        let (tls, authority) = tls::new_authority(&names)?;
        std::fs::write(directory.path().join("ca.pem"), authority)?;
        let host_lines: String = hosts
            .iter()
            .map(|name| format!("127.0.0.1 {name}\n"))
            .collect();
        std::fs::write(directory.path().join("hosts"), host_lines)?;

        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listeners = [listen()?, listen()?, listen()?];
        let ports: Vec<u16> = listeners
            .iter()
            .map(|listener| Ok(listener.local_addr()?.port()))
            .collect::<io::Result<_>>()?;
        let shared = Arc::new(Shared {
            files: self.files,
            routes: Mutex::default(),
            https: ports[..2].to_vec(),
            http: ports[2..].to_vec(),
            stopping: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
        });
        let server = Server {
            shared: shared.clone(),
            hosts,
            directory,
        };
        for (index, listener) in listeners.into_iter().enumerate() {
            let shared = shared.clone();
            let tls = (index < 2).then(|| tls.clone());
            thread::Builder::new()
                .name(format!("test-server-{index}"))
                .spawn(move || accept(&listener, tls.as_ref(), &shared))?;
        }
        Ok(server)
    }
}

impl Server {
    /// Describes a server: it has no files yet, and the host names of web-platform-tests.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Answers this exact path, under every host name, with a closure. A later one of the same
    /// path takes its place.
    pub fn route(
        &self,
        path: &str,
        handler: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) {
        self.add_route(None, path, Arc::new(handler));
    }

    /// As [`Server::route`], for requests to one host name only.
    pub fn route_on(
        &self,
        host: &str,
        path: &str,
        handler: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) {
        self.add_route(Some(host.to_owned()), path, Arc::new(handler));
    }

    fn add_route(&self, host: Option<String>, path: &str, handler: Handler) {
        lock(&self.shared.routes).insert(
            0,
            Route {
                host,
                path: path.to_owned(),
                handler,
            },
        );
    }

    /// Answers this path with a page.
    pub fn page(&self, path: &str, html: &str) {
        let html = html.to_owned();
        self.route(path, move |_| Response::html(html.clone()));
    }

    /// URL of a path under the main host name, on the first HTTPS port.
    pub fn url(&self, path: &str) -> String {
        self.url_on(HOST, path)
    }

    /// URL of a path under a host name, on the first HTTPS port.
    pub fn url_on(&self, host: &str, path: &str) -> String {
        format!("https://{host}:{}{path}", self.shared.https[0])
    }

    /// URL of a path under a host name without TLS.
    pub fn insecure_url_on(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.shared.http[0])
    }

    /// The HTTPS ports; there are two.
    pub fn https_ports(&self) -> &[u16] {
        &self.shared.https
    }

    /// The authority's certificate, PEM, for `--certificate-path`.
    pub fn certificate_authority(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Maps every host name to loopback, for `--host-file`.
    pub fn host_file(&self) -> PathBuf {
        self.directory.path().join("hosts")
    }

    /// Every host name that the certificate covers, `localhost` aside.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for port in self.shared.https.iter().chain(&self.shared.http) {
            // Wakes the thread that waits for a connection.
            let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, *port));
        }
    }
}

/// A panic in a route is that test's failure; it must not stop the server for others.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, tls: Option<&Arc<ServerConfig>>, shared: &Arc<Shared>) {
    let port = listener.local_addr().map_or(0, |address| address.port());
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Out of file descriptors, most likely: do not spin.
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        if shared.connections.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
            shared.connections.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (tls, shared) = (tls.cloned(), shared.clone());
        thread::spawn(move || {
            let _counted = Counted(&shared.connections);
            // A failing connection is its client's business, and the client will say so.
            let _ = serve_connection(stream, tls, port, &shared);
        });
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve_connection(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    port: u16,
    shared: &Shared,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    match tls {
        None => serve_requests(stream, "http", port, shared),
        Some(config) => {
            let connection = ServerConnection::new(config).map_err(io::Error::other)?;
            serve_requests(StreamOwned::new(connection, stream), "https", port, shared)
        }
    }
}

fn serve_requests(
    mut stream: impl Read + Write,
    scheme: &'static str,
    port: u16,
    shared: &Shared,
) -> io::Result<()> {
    let mut pending = Vec::new();
    while !shared.stopping.load(Ordering::SeqCst) {
        match read_request(&mut stream, &mut pending, scheme, port) {
            Ok(request) => {
                let response = answer(&request, shared);
                if !write_response(&mut stream, Some(&request), &response)? {
                    break;
                }
            }
            Err(ReadError::Refused(response)) => {
                write_response(&mut stream, None, &response)?;
                break;
            }
            Err(ReadError::Closed) => break,
        }
    }
    Ok(())
}

fn answer(request: &Request, shared: &Shared) -> Response {
    let handler = {
        let routes = lock(&shared.routes);
        let matching = routes.iter().find(|route| {
            route.path == request.path
                && route.host.as_ref().is_none_or(|host| *host == request.host)
        });
        matching.map(|route| route.handler.clone())
    };
    match handler {
        Some(handler) => handler(request),
        None => shared.files.serve(&Context {
            host: HOST,
            alternate: ALTERNATE_HOST,
            https: &shared.https,
            http: &shared.http,
            request,
        }),
    }
}

/// A server for the web platform tests in `tree`, with the harness from `npm` (see
/// [`crate::npm::directory`]) and this crate's own `testdriver.js`.
pub fn web_platform_tests(tree: &Path, npm: &Path) -> Builder {
    let resources = Path::new(env!("CARGO_MANIFEST_DIR")).join("resources");
    let harness = npm.join("node_modules/wpt-runner/testharness");
    let own = |name: &str| resources.join(name);
    Server::builder()
        .mount("/resources/testharness.js", harness.join("testharness.js"))
        .mount("/resources/idlharness.js", harness.join("idlharness.js"))
        .mount("/resources/WebIDLParser.js", harness.join("webidl2.js"))
        .mount(
            "/resources/testharnessreport.js",
            own("testharnessreport.js"),
        )
        .mount("/resources/testdriver.js", own("testdriver.js"))
        .mount(
            "/resources/testdriver-vendor.js",
            own("testdriver-vendor.js"),
        )
        .mount(
            "/common/gc.js",
            npm.join("node_modules/wpt-runner/common/gc.js"),
        )
        .root("/", tree)
        .root("/interfaces/", npm.join("node_modules/@webref/idl"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// A request by hand, trusting nothing but the authority's file.
    fn fetch(server: &Server, port: u16, host: &str, path: &str) -> Result<String, io::Error> {
        let certificate = CertificateDer::from_pem_file(server.certificate_authority()).unwrap();
        let mut trusted = RootCertStore::empty();
        trusted.add(certificate).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(trusted)
            .with_no_client_auth();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut stream = StreamOwned::new(connection, stream);
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            _ => Ok(String::from_utf8(answer).unwrap()),
        }
    }

    #[test]
    fn serves_https_under_every_name_it_certifies() {
        let server = Server::builder().host("bank.example").start().unwrap();
        server.route("/who", |request| Response::text(200, request.host.clone()));
        assert_eq!(server.https_ports().len(), 2);
        let ports = server.https_ports().to_vec();
        for host in [
            HOST,
            "www1.web-platform.test",
            "www2.not-web-platform.test",
            "bank.example",
        ] {
            for port in &ports {
                let answer = fetch(&server, *port, host, "/who").unwrap();
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
                assert!(answer.ends_with(&format!("\r\n\r\n{host}")), "{answer}");
            }
        }
        assert!(fetch(&server, ports[0], "other.example", "/who").is_err());
        let hosts = std::fs::read_to_string(server.host_file()).unwrap();
        assert!(hosts.lines().any(|line| line == "127.0.0.1 bank.example"));
    }

    #[test]
    fn routes_count_redirect_and_depend_on_the_host() {
        let server = Server::builder().start().unwrap();
        let count = Arc::new(AtomicU32::new(0));
        let counter = count.clone();
        server.page("/", "<p>page");
        server.route("/count", move |_| {
            Response::text(
                200,
                (counter.fetch_add(1, Ordering::SeqCst) + 1).to_string(),
            )
        });
        server.route_on(ALTERNATE_HOST, "/count", |_| {
            Response::redirect(302, "/elsewhere")
        });
        let port = server.https_ports()[0];
        fetch(&server, port, HOST, "/count").unwrap();
        assert!(
            fetch(&server, port, HOST, "/count")
                .unwrap()
                .ends_with("\r\n\r\n2")
        );
        let redirect = fetch(&server, port, ALTERNATE_HOST, "/count").unwrap();
        assert!(
            redirect.contains("302 Found\r\n") && redirect.contains("Location: /elsewhere\r\n")
        );
        assert_eq!(count.load(Ordering::SeqCst), 2);
        assert!(
            fetch(&server, port, HOST, "/nothing")
                .unwrap()
                .starts_with("HTTP/1.1 404")
        );
    }

    #[test]
    fn a_dropped_server_accepts_no_more() {
        let server = Server::builder().start().unwrap();
        let port = server.https_ports()[0];
        drop(server);
        let gone = (0..100).any(|_| {
            thread::sleep(Duration::from_millis(20));
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err()
        });
        assert!(gone, "port {port} still accepts connections");
    }
}
