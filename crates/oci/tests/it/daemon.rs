//! Debian's registry on a free local port, killed at the end of the test.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a registry may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Daemon {
    pub directory: tempfile::TempDir,
    pub address: SocketAddr,
    process: Option<Child>,
}

/// The configuration of a registry.
#[derive(Clone, Copy, Default)]
pub struct Settings {
    pub password: bool,
    pub tls: bool,
}

impl Daemon {
    pub fn start(settings: Settings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n  secret: of-a-test\n",
            at("data"),
        );
        if settings.tls {
            certificate(&at("key.pem"), &at("cert.pem"));
            config += &format!("  tls:\n    certificate: {}\n    key: {}\n", at("cert.pem"), at("key.pem"));
        }
        if settings.password {
            let file = run(Command::new("htpasswd").args(["-Bbn", "user", "secret"])).stdout;
            fs::write(at("passwords"), file).unwrap();
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", at("passwords"));
        }
        fs::write(at("config.yml"), config).unwrap();
        let mut daemon = Self { directory, address, process: None };
        daemon.again();
        daemon
    }

    /// Starts it (again), with the same address and data.
    pub fn again(&mut self) {
        self.kill();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(self.path("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < deadline, "{}", fs::read_to_string(self.path("log")).unwrap_or_default());
            std::thread::yield_now();
        }
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn certificate(key: &str, certificate: &str) {
    let arguments = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE";
    run(Command::new("openssl").args(arguments.split(' ')).args(["-keyout", key, "-out", certificate]));
}

/// Runs a tool, which must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    output
}
