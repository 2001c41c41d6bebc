//! Encryption of secrets in the records, with the keys in a file of the data directory.
//!
//! The file has a key on each line, as 64 hexadecimal digits. The first one encrypts; each of them decrypts what it has encrypted. So a new
//! one is put above the old one, and what the old one has encrypted is encrypted anew.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac as _};
use rand::RngExt as _;
use raworc_store::Encrypted;
use sha2::{Digest as _, Sha256};

use crate::sync::lock;

/// The name of the file.
pub const KEY_FILE: &str = "secrets.key";
/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Bytes of a nonce. It is long enough to be random.
const NONCE_BYTES: usize = 24;
/// Keys in the file at most.
const KEYS_MAX: usize = 16;
/// Longest file, in bytes.
const FILE_BYTES_MAX: u64 = 4096;
/// XChaCha20-Poly1305, with the place of the text as associated data: nonce, ciphertext, tag.
const SCHEME: u8 = 1;
/// The first bytes of a key's hash are its name.
const NAME_BYTES: usize = 8;

/// Where an encrypted text is stored. It decrypts nowhere else, so that whoever writes to the database cannot exchange two of them.
#[derive(Clone, Copy, Debug)]
pub struct Place<'p> {
    /// The table.
    pub table: &'static str,
    /// The id of the row.
    pub id: &'p str,
    /// The column.
    pub column: &'static str,
}

/// Why the key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is none.
    #[error("is missing")]
    Missing,
    /// Its content is not as this program writes it.
    #[error("is no key file: it has 1 to {KEYS_MAX} lines of 64 hexadecimal digits each")]
    Malformed,
    /// It cannot be read, or not be made.
    #[error("cannot be accessed: {0}")]
    Io(#[from] std::io::Error),
}

/// Why a text cannot be decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecryptable {
    /// None of the keys has encrypted it.
    #[error("was encrypted with another key than those in {KEY_FILE}")]
    OtherKey,
    /// It is not, or not there, what the key has encrypted.
    #[error("was changed after it had been encrypted")]
    Altered,
    /// A newer release has encrypted it.
    #[error("was encrypted in a way that this release does not know")]
    OtherScheme,
    /// There is no key to try.
    #[error("cannot be decrypted without {KEY_FILE}")]
    NoKeyFile,
}

/// The key file of a data directory.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    making: Mutex<()>,
}

impl KeyFile {
    /// The one of this data directory; it need not be there.
    pub fn of(data_dir: &Path) -> Self {
        Self { path: data_dir.join(KEY_FILE), making: Mutex::new(()) }
    }

    /// Reads it. It is read whenever it is needed, so that one that is put back is used at once.
    ///
    /// # Errors
    /// Where it is missing, or is no key file.
    pub fn read(&self) -> Result<KeyRing, KeyFileError> {
        let file = File::open(&self.path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => KeyFileError::Missing,
            _ => KeyFileError::Io(error),
        })?;
        let mut text = String::new();
        match file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text) {
            Ok(_) => KeyRing::parse(&text).ok_or(KeyFileError::Malformed),
            Err(error) if error.kind() == ErrorKind::InvalidData => Err(KeyFileError::Malformed),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes it with a new key, unless it is there.
    ///
    /// # Errors
    /// Where it cannot be written, or what is there is no key file.
    pub fn read_or_make(&self) -> Result<KeyRing, KeyFileError> {
        let _making = lock(&self.making);
        match self.read() {
            Err(KeyFileError::Missing) => {}
            found => return found,
        }
        let key: [u8; KEY_BYTES] = rand::rng().random();
        let temporary = self.path.with_extension("key.new");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(format!("{}\n", hex::encode(key)).as_bytes())?;
        file.sync_all()?;
        // Unlike a rename, this never replaces a file that someone has just put back.
        let linked = fs::hard_link(&temporary, &self.path);
        fs::remove_file(&temporary)?;
        match linked {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        self.read()
    }
}

/// One key.
#[derive(Clone)]
struct Key {
    name: String,
    secret: [u8; KEY_BYTES],
}

impl Key {
    fn new(secret: [u8; KEY_BYTES]) -> Self {
        let hash = Sha256::new_with_prefix(b"raworc key name\0").chain_update(secret).finalize();
        Self { name: hex::encode(&hash[..NAME_BYTES]), secret }
    }
}

/// The keys of a key file; the first one encrypts.
#[derive(Clone)]
pub struct KeyRing {
    first: Key,
    others: Vec<Key>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing(of {})", self.others.len() + 1)
    }
}

impl KeyRing {
    fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut keys = Vec::new();
        for line in lines {
            keys.push(Key::new(hex::decode(line).ok()?.try_into().ok()?));
        }
        let is_short = text.len() as u64 <= FILE_BYTES_MAX && keys.len() <= KEYS_MAX;
        let mut keys = keys.into_iter();
        Some(Self { first: keys.next()?, others: keys.collect() }).filter(|_| is_short)
    }

    /// Encrypts a text for one place in the records.
    pub fn encrypt(&self, place: Place<'_>, text: &str) -> Option<Encrypted> {
        let nonce: [u8; NONCE_BYTES] = rand::rng().random();
        let bound = associated_data(&self.first.name, place);
        let payload = Payload { msg: text.as_bytes(), aad: &bound };
        // It fails for texts of more than 256 GiB only.
        let encrypted = cipher(&self.first).encrypt(&XNonce::from(nonce), payload).ok()?;
        Some(Encrypted::new(SCHEME, &self.first.name, &[&nonce[..], &encrypted].concat()))
    }

    /// Decrypts a text that was encrypted for this place.
    ///
    /// # Errors
    /// See [`Undecryptable`].
    pub fn decrypt(&self, place: Place<'_>, encrypted: &Encrypted) -> Result<String, Undecryptable> {
        if encrypted.scheme() != Some(SCHEME) {
            return Err(Undecryptable::OtherScheme);
        }
        let mut keys = std::iter::once(&self.first).chain(&self.others);
        let key = keys.find(|key| key.name == encrypted.key()).ok_or(Undecryptable::OtherKey)?;
        let data = encrypted.data();
        let (nonce, data) = data.split_first_chunk::<NONCE_BYTES>().ok_or(Undecryptable::Altered)?;
        let payload = Payload { msg: data, aad: &associated_data(&key.name, place) };
        let text = cipher(key).decrypt(&XNonce::from(*nonce), payload).map_err(|_| Undecryptable::Altered)?;
        String::from_utf8(text).map_err(|_| Undecryptable::Altered)
    }

    /// The names of the keys, which tell them apart and nothing else.
    pub fn names(&self) -> Vec<String> {
        std::iter::once(&self.first).chain(&self.others).map(|key| key.name.clone()).collect()
    }

    /// Whether this was encrypted with another key than the one that encrypts now.
    pub fn is_old(&self, encrypted: &Encrypted) -> bool {
        encrypted.key() != self.first.name
    }

    /// Stands for a text without telling it; the same for the same text, as long as the key is the same.
    pub fn stand_in(&self, text: &str) -> String {
        let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(&self.first.secret)
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(b"raworc stand-in\0");
        mac.update(text.as_bytes());
        hex::encode(mac.finalize().into_bytes())
    }
}

fn cipher(key: &Key) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&key.secret.into())
}

/// What belongs to a text without being encrypted. No part of it contains a NUL.
fn associated_data(key: &str, Place { table, id, column }: Place<'_>) -> Vec<u8> {
    format!("raworc\0v{SCHEME}\0{key}\0{table}\0{id}\0{column}").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const PLACE: Place<'static> = Place { table: "providers", id: "1", column: "api_key" };

    fn ring(keys: &[u8]) -> KeyRing {
        let lines: Vec<String> = keys.iter().map(|key| hex::encode([*key; KEY_BYTES])).collect();
        KeyRing::parse(&lines.join("\n")).unwrap()
    }

    #[test]
    fn a_text_decrypts_with_its_key_at_its_place_only() {
        let (own, text) = (ring(&[1]), "sk-secret");
        let encrypted = own.encrypt(PLACE, text).unwrap();
        assert_eq!(own.decrypt(PLACE, &encrypted).as_deref(), Ok(text));
        assert_ne!(own.encrypt(PLACE, text).unwrap(), encrypted, "each has a nonce of its own");
        assert_eq!(ring(&[2, 1]).decrypt(PLACE, &encrypted).as_deref(), Ok(text));
        assert_eq!(ring(&[2]).decrypt(PLACE, &encrypted), Err(Undecryptable::OtherKey));
        for place in
            [Place { table: "secrets", ..PLACE }, Place { id: "2", ..PLACE }, Place { column: "value", ..PLACE }]
        {
            assert_eq!(own.decrypt(place, &encrypted), Err(Undecryptable::Altered), "{place:?}");
        }
        let data = encrypted.data();
        for at in 0..data.len() {
            let mut altered = data.clone();
            altered[at] ^= 1;
            let altered = Encrypted::new(SCHEME, encrypted.key(), &altered);
            assert_eq!(own.decrypt(PLACE, &altered), Err(Undecryptable::Altered), "byte {at}");
            let cut = Encrypted::new(SCHEME, encrypted.key(), &data[..at]);
            assert_eq!(own.decrypt(PLACE, &cut), Err(Undecryptable::Altered), "{at} bytes");
        }
        let newer = Encrypted::new(SCHEME + 1, encrypted.key(), &data);
        assert_eq!(own.decrypt(PLACE, &newer), Err(Undecryptable::OtherScheme));
        assert!(!own.is_old(&encrypted) && ring(&[2, 1]).is_old(&encrypted));
        assert!(!format!("{own:?} {encrypted:?}").contains("0101"), "{own:?}");
    }

    #[test]
    fn a_stand_in_tells_texts_apart_and_needs_the_key() {
        let own = ring(&[1]);
        assert_eq!(own.stand_in("a"), own.stand_in("a"));
        assert_ne!(own.stand_in("a"), own.stand_in("b"));
        assert_ne!(own.stand_in("a"), ring(&[2]).stand_in("a"));
    }

    #[test]
    fn the_file_is_made_once_and_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (file, path) = (KeyFile::of(directory.path()), directory.path().join(KEY_FILE));
        assert!(matches!(file.read(), Err(KeyFileError::Missing)));
        // What a server that died has left.
        fs::write(directory.path().join("secrets.key.new"), "x").unwrap();
        let encrypted = file.read_or_make().unwrap().encrypt(PLACE, "text").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(file.read_or_make().unwrap().decrypt(PLACE, &encrypted).as_deref(), Ok("text"));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        let line = "ab".repeat(KEY_BYTES);
        for (content, is_one) in [
            (line.clone(), true),
            (format!("\n {line} \n\n"), true),
            (format!("{line}\n{line}"), true),
            (format!("{line}\n").repeat(KEYS_MAX), true),
            (format!("{line}\n").repeat(KEYS_MAX + 1), false),
            (String::new(), false),
            ("\n".to_owned(), false),
            (line[2..].to_owned(), false),
            (format!("{line}\nx"), false),
            (format!("{line}{}", " ".repeat(5000)), false),
        ] {
            fs::write(&path, &content).unwrap();
            assert_eq!(file.read().is_ok(), is_one, "{content:?}");
            let made = file.read_or_make();
            assert!(is_one || matches!(made, Err(KeyFileError::Malformed)), "{content:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        fs::write(&path, [0xff; 64]).unwrap();
        assert!(matches!(file.read(), Err(KeyFileError::Malformed)));
    }
}
