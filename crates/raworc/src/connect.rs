//! Finds the server and the token to use.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use raworc_api::client::Client;

use crate::config::{Global, LISTEN_DEFAULT};
use crate::failure::{EXIT_NO_SERVER, Failure, Result};

/// The file in the data directory with a running server's URL.
pub const URL_FILE: &str = "server.url";
/// The file in the data directory with the first administrator's token.
pub const TOKEN_FILE: &str = "admin.token";

/// How long to wait for a local server to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A server that may not have been contacted yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its URL.
    pub url: String,
    token: Token,
}

/// The token for a server.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Known(String),
    /// There is none; the reason, for people.
    Missing(String),
}

impl Target {
    /// A client with the token.
    pub fn client(&self) -> Result<Client> {
        match &self.token {
            Token::Known(token) => Ok(Client::new(&self.url, token)?),
            Token::Missing(why) => Err(Failure::usage(format!("there is no token for {}: {why}", self.url)).help(
                "Name one with --token or RAWORC_TOKEN; whoever runs the server makes one with `raworc token create`.",
            )),
        }
    }

    /// A client without a token.
    pub fn anonymous(&self) -> Result<Client> {
        Ok(Client::anonymous(&self.url)?)
    }
}

/// Finds the server for these options.
pub fn find(global: &Global) -> Result<Target> {
    let dir = global.data_dir();
    let known = given(&global.token);
    if let Some(url) = given(&global.url) {
        // A data directory's token must not be sent to any other server.
        let token = known.map(Token::Known).or_else(|| own_token(&dir, &url));
        let token = token.unwrap_or_else(|| Token::Missing("a server named with --url needs it".into()));
        return Ok(Target { url, token });
    }
    let dir = dir?;
    let Some(url) = written(&dir.join(URL_FILE))? else {
        return match known {
            Some(token) => Ok(Target { url: format!("http://{LISTEN_DEFAULT}"), token: Token::Known(token) }),
            None => Err(nothing_there(&dir)),
        };
    };
    let token = known.map_or_else(|| token_of(&dir), Token::Known);
    Ok(Target { url, token })
}

/// The server of this machine, if these options mean it and its URL is on file.
pub fn find_here(global: &Global) -> Result<Option<Target>> {
    let is_known = given(&global.url).is_some() || written(&global.data_dir()?.join(URL_FILE))?.is_some();
    if is_known { find(global).map(Some) } else { Ok(None) }
}

/// Whether a server is given explicitly, or a local one accepts connections.
pub fn is_there(global: &Global) -> bool {
    let takes_connections = |target: Target| {
        let address = target.url.trim_start_matches("http://").parse().ok();
        address.is_some_and(|address| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok())
    };
    given(&global.url).is_some() || find_here(global).ok().flatten().is_some_and(takes_connections)
}

/// Advice for when no server answers.
pub fn what_to_do(global: &Global) -> String {
    let origin = match (given(&global.url), global.data_dir()) {
        (Some(_), _) => "The URL was given with --url or RAWORC_URL.".to_owned(),
        (None, Ok(dir)) if dir.join(URL_FILE).exists() => format!("The URL is from {}.", dir.join(URL_FILE).display()),
        (None, Ok(dir)) => format!("{} is not there, so the default URL was tried.", dir.join(URL_FILE).display()),
        (None, Err(_)) => "The default URL was tried.".to_owned(),
    };
    format!("{origin}\nStart a server with `raworc serve`, or name another with --url or RAWORC_URL.")
}

fn nothing_there(dir: &Path) -> Failure {
    Failure::Message {
        status: EXIT_NO_SERVER,
        message: format!("no server runs here: {} is not there", dir.join(URL_FILE).display()),
        help: Some(
            "Start one with `raworc serve`, or name one: its URL with --url or RAWORC_URL, its data directory with --data-dir."
                .into(),
        ),
    }
}

fn own_token(dir: &Result<PathBuf>, url: &str) -> Option<Token> {
    let dir = dir.as_ref().ok()?;
    let own = written(&dir.join(URL_FILE)).ok()??;
    (own.trim_end_matches('/') == url.trim_end_matches('/')).then(|| token_of(dir))
}

fn token_of(dir: &Path) -> Token {
    let path = dir.join(TOKEN_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Token::Known(text.trim().to_owned()),
        Err(error) => Token::Missing(format!("{} can't be read: {error}", path.display())),
    }
}

fn written(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|url| !url.is_empty())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::usage(format!("{} can't be read: {error}", path.display()))
            .help("Are you the user who runs the server? Otherwise name it with --url and a token with --token.")),
    }
}

fn given(option: &Option<String>) -> Option<String> {
    option.clone().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global(url: Option<&str>, token: Option<&str>, dir: &Path) -> Global {
        Global {
            url: url.map(Into::into),
            token: token.map(Into::into),
            data_dir: Some(dir.into()),
            ..Global::default()
        }
    }

    fn server(url: &str, token: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(URL_FILE), format!("{url}\n")).unwrap();
        std::fs::write(dir.path().join(TOKEN_FILE), format!("{token}\n")).unwrap();
        dir
    }

    fn known(url: &str, token: &str) -> Target {
        Target { url: url.into(), token: Token::Known(token.into()) }
    }

    #[test]
    fn a_server_of_this_machine_is_found_by_its_directory() {
        let dir = server("http://127.0.0.1:7", "secret");
        assert_eq!(find(&global(None, None, dir.path())).unwrap(), known("http://127.0.0.1:7", "secret"));
        assert_eq!(find(&global(None, Some("mine"), dir.path())).unwrap(), known("http://127.0.0.1:7", "mine"));
        let own = find(&global(Some("http://127.0.0.1:7/"), None, dir.path())).unwrap();
        assert_eq!(own, known("http://127.0.0.1:7/", "secret"));
    }

    #[test]
    fn the_administrators_token_goes_to_no_other_server() {
        let dir = server("http://127.0.0.1:7", "secret");
        let target = find(&global(Some("http://elsewhere.test"), None, dir.path())).unwrap();
        let failure = target.client().unwrap_err();
        assert_eq!(failure.exit_status(), 2);
    }

    #[test]
    fn without_a_server() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(&global(None, None, dir.path())).unwrap_err().exit_status(), 3);
        assert!(find_here(&global(None, None, dir.path())).unwrap().is_none());
        let target = find(&global(None, Some("mine"), dir.path())).unwrap();
        assert_eq!(target, known("http://127.0.0.1:9000", "mine"));
    }

    #[test]
    fn an_empty_option_is_none() {
        let dir = server("http://127.0.0.1:7", "secret");
        assert_eq!(find(&global(Some(""), Some(""), dir.path())).unwrap(), known("http://127.0.0.1:7", "secret"));
    }
}
