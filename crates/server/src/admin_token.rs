//! The file with the first administrator's token.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use raworc_core::time::Time;
use raworc_store::Store;

use crate::error::StartError;
use crate::verbs;

/// The token from its file; made at first start, made anew where the file was lost.
pub async fn find_or_make(store: &Store, path: &Path, now: Time) -> Result<String, StartError> {
    let failed = |error| StartError::File(path.to_owned(), error);
    if let Some(secret) = verbs::accounts::first_start(store, now).await? {
        write_secret(path, &secret).map_err(failed)?;
        return Ok(secret);
    }
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) => replace(store, path, now).await,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => replace(store, path, now).await,
        Err(error) => Err(failed(error)),
    }
}

async fn replace(store: &Store, path: &Path, now: Time) -> Result<String, StartError> {
    let secret = verbs::accounts::replace_admin_token(store, now).await?;
    write_secret(path, &secret).map_err(|error| StartError::File(path.to_owned(), error))?;
    Ok(secret)
}

fn write_secret(path: &Path, secret: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(format!("{secret}\n").as_bytes())?;
    file.sync_all()
}
