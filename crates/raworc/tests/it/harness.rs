//! A separate server for each test; everything it creates is removed at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use raworc_core::events::LogEvent;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// The program under test.
pub const RAWORC: &str = env!("CARGO_BIN_EXE_raworc");
/// Timeout of every wait.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether containers can run here; prints SKIPPED and the reason otherwise. Tests that need them return if it is
/// false.
pub fn can_run_containers() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        // Past the test harness, which keeps the output of tests that pass.
        let _ = writeln!(std::io::stderr(), "SKIPPED: making containers needs root; run the tests as root");
    }
    is_root
}

/// Polls until a condition is true.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "it does not come that {what}");
        tokio::task::yield_now().await;
    }
}

/// Starts a test that needs containers, or prints SKIPPED.
#[macro_export]
macro_rules! server_or_skip {
    () => {{
        if !$crate::harness::can_run_containers() {
            return;
        }
        $crate::harness::TestServer::start(&[])
    }};
}

/// A running server with its own data directory.
pub struct TestServer {
    directory: tempfile::TempDir,
    /// Whether the data directory is a mount.
    has_disk: bool,
    arguments: Vec<String>,
    child: Option<Child>,
    /// Its URL.
    pub url: String,
    /// The administrator's token.
    pub token: String,
    client: reqwest::Client,
}

impl TestServer {
    /// Starts a server with additional arguments.
    pub fn start(arguments: &[&str]) -> Self {
        let mut server = Self::new(arguments);
        server.start_again();
        server
    }

    /// Starts a server whose data directory is a separate disk of this many MiB.
    pub fn start_on_disk(mebibytes: u32) -> Self {
        Self::start_on_small_disk(&format!("size={mebibytes}m"))
    }

    /// Starts a server whose data directory is a tmpfs with these options.
    pub fn start_on_small_disk(options: &str) -> Self {
        let mut server = Self::new(&[]);
        fs::create_dir(server.data_dir()).unwrap();
        let size = format!("{options},mode=711");
        mount(Some("tmpfs"), &server.data_dir(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        server.has_disk = true;
        server.start_again();
        server
    }

    /// Starts a server on a copy of this data directory.
    pub fn start_on_copy(data_dir: &Path) -> Self {
        let mut server = Self::new(&[]);
        let status = Command::new("cp").arg("-a").args([data_dir, &server.data_dir()]).status().unwrap();
        assert!(status.success());
        server.start_again();
        server
    }

    fn new(arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("raworc-test-").tempdir().unwrap();
        Self {
            directory,
            has_disk: false,
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            child: None,
            url: String::new(),
            token: String::new(),
            client: reqwest::Client::new(),
        }
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Blobs of running or failed transfers.
    pub fn blobs(&self) -> Vec<PathBuf> {
        let list =
            |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path());
        list(self.data_dir().join("images")).flat_map(|account| list(account.join("blobs/sha256"))).collect()
    }

    /// The server's process id.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().unwrap().id() as i32
    }

    /// Sets the arguments for the next starts.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
    }

    /// Kills the server, as a power failure would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops the server with SIGTERM; it must exit with 0.
    pub fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "the server ended with {status}");
    }

    /// Starts the stopped server on the same data directory.
    pub fn start_again(&mut self) {
        self.start_again_at("0");
    }

    /// As [`Self::start_again`], on this port.
    pub fn start_again_at(&mut self, port: &str) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut child = Command::new(RAWORC)
            .args([
                "serve",
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--log",
                "info,raworc_server=debug",
                "--data-dir",
            ])
            .arg(self.data_dir())
            .args(&self.arguments)
            .env_remove("RAWORC_URL")
            .env_remove("RAWORC_TOKEN")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        // Whatever else it says must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        self.child = Some(child);
        let url = first.split_whitespace().find(|word| word.starts_with("http://"));
        let Some(url) = url else {
            panic!("the server did not start: {first:?}\n{}", self.log());
        };
        self.url = url.to_owned();
        self.token = fs::read_to_string(self.data_dir().join("admin.token")).unwrap().trim().to_owned();
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A call with this token.
    pub fn request_as(&self, token: &str, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}/api/v0{path}", self.url)).bearer_auth(token)
    }

    /// A call as the administrator.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.request_as(&self.token, method, path)
    }

    /// GET: status and body.
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    /// POST: status and body.
    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path).json(&body)).await
    }

    /// PUT: status and body.
    pub async fn put(&self, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(Method::PUT, path).json(&body)).await
    }

    /// DELETE: status and body.
    pub async fn delete(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::DELETE, path)).await
    }

    /// Creates a session, waits until it is READY, and returns its id.
    pub async fn session(&self, body: Value) -> String {
        let (status, session) = self.post("/sessions", body).await;
        assert_eq!(status, 201, "{session}");
        let id = session["id"].as_str().unwrap().to_owned();
        self.until(&id, |session| session["state"] == "READY").await;
        id
    }

    /// Waits for a condition by the session's events, and returns the session.
    pub async fn until(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, session) = self.get(&format!("/sessions/{id}")).await;
            assert_eq!(status, 200, "{session}");
            if wanted(&session) {
                return session;
            }
            assert!(Instant::now() < deadline, "the session never became as wanted: {session:#}\n{}", self.log());
            self.next_event(id, session["last_seq"].as_u64().unwrap()).await;
        }
    }

    /// Waits for an event after `after`, at most a second.
    async fn next_event(&self, id: &str, after: u64) {
        let path = format!("/sessions/{id}/events?after={after}");
        let mut response = self.request(Method::GET, &path).header("accept", "text/event-stream").send().await.unwrap();
        if let Ok(chunk) = tokio::time::timeout(Duration::from_secs(1), response.chunk()).await {
            chunk.unwrap();
        }
    }

    /// Sends a message, waits for its end, and returns it with its reply.
    pub async fn send(&self, id: &str, content: &str) -> Value {
        let (status, message) =
            self.post(&format!("/sessions/{id}/messages?wait_seconds=60"), json!({ "content": content })).await;
        assert_eq!(status, 200, "{message:#}\n{}", self.log());
        message
    }

    /// Sends a message that must be done, and returns its output.
    pub async fn output(&self, id: &str, script: &str) -> String {
        let message = self.send(id, script).await;
        assert_eq!(message["status"], "done", "{message:#}");
        message["reply"]["content"].as_str().unwrap().to_owned()
    }

    /// All events of a session so far.
    pub async fn events(&self, id: &str) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let (status, page) = self.get(&format!("/sessions/{id}/events?limit=500&after={}", events.len())).await;
            assert_eq!(status, 200, "{page}");
            let items = page["items"].as_array().unwrap().clone();
            if items.is_empty() {
                check_log(&events);
                return events;
            }
            events.extend(items);
            let numbers: Vec<u64> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
            assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>(), "numbers have no gaps");
        }
    }

    /// The whole conversation of a session.
    pub async fn messages(&self, id: &str) -> Vec<Value> {
        let (mut messages, mut cursor) = (Vec::new(), String::new());
        loop {
            let (status, page) = self.get(&format!("/sessions/{id}/messages?limit=500{cursor}")).await;
            assert_eq!(status, 200, "{page}");
            messages.extend(page["items"].as_array().unwrap().clone());
            let Some(next) = page["next_cursor"].as_str() else { return messages };
            cursor = format!("&cursor={next}");
        }
    }

    /// The name of a session's newest container.
    pub async fn container(&self, id: &str) -> String {
        format!("{id}-{}", self.get(&format!("/sessions/{id}")).await.1["generation"])
    }

    /// The host process id of a container's first process.
    pub fn host_pid(&self, container: &str) -> i32 {
        let record = self.data_dir().join("run/containers").join(container).join("process");
        let text = fs::read_to_string(&record).unwrap_or_else(|error| panic!("{}: {error}", record.display()));
        text.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Sends a signal to a container's first process.
    pub fn signal_host(&self, container: &str, signal: Signal) {
        kill(Pid::from_raw(self.host_pid(container)), signal).unwrap();
    }

    /// The first of these files in a container's cgroups.
    pub fn cgroup_value(&self, container: &str, files: &[&str]) -> Option<String> {
        let own = self.cgroups_of(container);
        let text = files
            .iter()
            .flat_map(|file| own.iter().map(move |path| path.join(file)))
            .find_map(|path| fs::read_to_string(path).ok());
        text.map(|text| text.trim().to_owned())
    }

    /// The cgroups of a container.
    pub fn cgroups_of(&self, container: &str) -> Vec<PathBuf> {
        let slot = self.slots().into_iter().find(|(_, bundle)| bundle == container).map(|(slot, _)| slot);
        self.cgroups().into_iter().filter(|path| slot.as_ref().is_some_and(|slot| path.ends_with(slot))).collect()
    }

    /// Names of bundles, and of cgroups without a bundle; without spare containers.
    pub fn containers(&self) -> BTreeSet<String> {
        let slots = self.slots();
        let bundles = fs::read_dir(self.data_dir().join("run/containers")).into_iter().flatten().flatten();
        let bundles = bundles.map(|entry| entry.path());
        let all = bundles.chain(self.cgroups()).map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
        all.map(|name| slots.get(&name).cloned().unwrap_or(name)).filter(|name| !slots.contains_key(name)).collect()
    }

    /// Names of bundles by slot; those of spare containers equal their slot.
    pub fn slots(&self) -> BTreeMap<String, String> {
        let bundles = fs::read_dir(self.data_dir().join("run/containers")).into_iter().flatten().flatten();
        let named = |entry: fs::DirEntry| {
            let slot = fs::read_to_string(entry.path().join("slot")).ok()?;
            Some((slot, entry.file_name().to_string_lossy().into_owned()))
        };
        bundles.filter_map(named).collect()
    }

    /// Processes of this server's containers, by host process id.
    pub fn container_processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for cgroup in self.cgroups() {
            let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The cgroups of this server's containers, in every hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let Ok(instance) = fs::read_to_string(self.data_dir().join("run/instance")) else {
            return Vec::new();
        };
        let own = Path::new("raworc").join(instance.trim());
        let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
        roots.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
        let mut found = Vec::new();
        for root in roots.into_iter().map(|root| root.join(&own)) {
            found.extend(fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()));
        }
        found
    }

    /// Runs the command line with this server.
    pub fn cli(&self, arguments: &[&str]) -> std::process::Output {
        self.program(RAWORC, arguments)
    }

    /// Runs a shell script with the program in PATH, and this server.
    pub fn shell(&self, script: &str) -> std::process::Output {
        let directory = Path::new(RAWORC).parent().unwrap().display();
        self.program("bash", &["-euc", &format!("PATH={directory}:$PATH\n{script}")])
    }

    fn program(&self, program: &str, arguments: &[&str]) -> std::process::Output {
        Command::new(program)
            .args(arguments)
            .env("RAWORC_URL", &self.url)
            .env("RAWORC_TOKEN", &self.token)
            .env("RAWORC_DATA_DIR", self.data_dir())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let bytes = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log ---\n{}", self.log());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // A test that failed may have left containers. Nothing starts new ones any more: kill and wait for what there is.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let processes = self.container_processes();
            for pid in &processes {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            let cgroups = self.cgroups();
            // What was just being saved stands still, and does not die before it goes on.
            for cgroup in cgroups.iter().filter(|cgroup| cgroup.join("freezer.state").exists()) {
                let _ = fs::write(cgroup.join("freezer.state"), "THAWED");
            }
            if processes.is_empty() && cgroups.iter().all(|cgroup| fs::remove_dir(cgroup).is_ok() || !cgroup.exists()) {
                break;
            }
            if Instant::now() > deadline {
                eprintln!("left behind: {processes:?} {cgroups:?}");
                break;
            }
            std::thread::yield_now();
        }
        if let Ok(instance) = fs::read_to_string(self.data_dir().join("run/instance")) {
            let own = Path::new("raworc").join(instance.trim());
            let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(&own));
            for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
                let _ = fs::remove_dir(hierarchy.path().join(&own));
            }
        }
        if self.has_disk {
            let _ = umount2(&self.data_dir(), MntFlags::MNT_DETACH);
        }
    }
}

/// Every log says only what is declared, and every turn in it that began has at most one end, with all that is told of it before.
fn check_log(events: &[Value]) {
    let mut open: BTreeMap<String, String> = BTreeMap::new();
    let mut begun = BTreeSet::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for event in events {
        let (kind, data) = (event["type"].as_str().unwrap(), event["data"].as_object().unwrap());
        let Some(known) = LogEvent::read(kind, data) else { panic!("no event that is declared: {event:#}") };
        assert_eq!(&known.data().unwrap(), data, "a field that is not declared: {event:#}");
        let (turn, message) = (text(&event["data"]["turn_id"]), text(&event["data"]["message_id"]));
        match kind {
            "message.started" => {
                assert!(begun.insert(turn.clone()) && !turn.is_empty(), "no turn of its own: {event:#}");
                open.insert(turn, message);
            }
            "message.delta" => assert_eq!(open.get(&turn), Some(&message), "of a turn that is over: {event:#}"),
            "message.added" => assert_eq!(open.get(&turn), Some(&text(&event["data"]["reply_to"])), "{event:#}"),
            "message.requeued" => assert_eq!(open.remove(&turn), Some(message), "ends no turn: {event:#}"),
            "message.finished" if turn.is_empty() => {
                assert!(open.values().all(|other| *other != message), "its turn goes on: {event:#}");
            }
            "message.finished" => assert_eq!(open.remove(&turn), Some(message), "ends no turn: {event:#}"),
            _ => {}
        }
    }
}
