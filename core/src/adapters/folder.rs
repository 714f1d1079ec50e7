//! The data folder of the embedded profile: nobody but its owner looks into it, and it holds the key that seals secrets.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::ports::world::World;
use crate::services::seal::{SecretKey, SecretKeys};

/// The file of the key that seals secrets: base64, one a line. The first seals, the others are from before.
pub const KEY_FILE: &str = "secret.key";
/// What the files of a data folder end with.
#[cfg(unix)]
const OWN: [&str; 5] = [".db", ".db-wal", ".db-shm", ".lock", ".key"];

/// Makes the folder where it is missing, for its owner alone, and closes one that others could look into: also its files.
///
/// # Errors
/// The system's own.
pub fn make(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;

        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        if tighten(path, 0o700)? {
            tracing::warn!(folder = %path.display(), "other users could read the data folder; its mode is 0700 now");
        }
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            let own = OWN.iter().any(|end| name.to_string_lossy().ends_with(end));
            if own && entry.file_type()?.is_file() && tighten(&entry.path(), 0o600)? {
                tracing::warn!(file = %entry.path().display(), "other users could read this file; its mode is 0600 now");
            }
        }
        Ok(())
    }
    #[cfg(not(unix))]
    fs::create_dir_all(path)
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The folder is there.
    #[error("the folder exists: name one that does not exist yet")]
    There,
    /// A copy is not whole.
    #[error("the copy of {0} is damaged: {1}")]
    Damaged(&'static str, String),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// Copies a data folder into a new one, while its server runs or not; answers the files. The queues first: what is in both a queue and
/// the store has no effect twice, what is in neither would be lost. Every copy is read through before it counts.
///
/// # Errors
/// When the new folder is there already, or a file cannot be copied or read.
pub async fn back_up(data: &Path, into: &Path) -> Result<Vec<&'static str>, BackupError> {
    if into.exists() {
        return Err(BackupError::There);
    }
    // What has the name of a backup is whole.
    let mut name = into.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let _ = fs::remove_dir_all(&partial);
    match copy(data, &partial).await {
        Ok(copied) => {
            fs::rename(&partial, into)?;
            Ok(copied)
        }
        Err(error) => {
            let _ = fs::remove_dir_all(&partial);
            Err(error)
        }
    }
}

async fn copy(data: &Path, into: &Path) -> Result<Vec<&'static str>, BackupError> {
    use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

    make(into)?;
    let mut copied = Vec::new();
    for name in ["queue.db", "automations.db", "store.db"] {
        let (from, to) = (data.join(name), into.join(name));
        let open = |path: &Path| {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
            let options = options.busy_timeout(std::time::Duration::from_secs(30));
            async move { SqliteConnection::connect_with(&options).await }
        };
        let mut source = open(&from).await?;
        // One state of the file, whoever writes meanwhile. A quote in a path is doubled.
        own_file(&to)?;
        let target = to.display().to_string().replace('\'', "''");
        sqlx::query(AssertSqlSafe(format!("vacuum into '{target}'"))).execute(&mut source).await?;
        source.close().await?;
        let mut copy = open(&to).await?;
        let sound: String = sqlx::query_scalar("pragma integrity_check").fetch_one(&mut copy).await?;
        copy.close().await?;
        if sound != "ok" {
            return Err(BackupError::Damaged(name, sound));
        }
        fs::File::open(&to)?.sync_all()?;
        copied.push(name);
    }
    if data.join(KEY_FILE).exists() {
        own_file(&into.join(KEY_FILE))?;
        fs::copy(data.join(KEY_FILE), into.join(KEY_FILE))?;
        fs::File::open(into.join(KEY_FILE))?.sync_all()?;
        copied.push(KEY_FILE);
    }
    Ok(copied)
}

/// Takes from others what they may do; answers whether there was anything.
#[cfg(unix)]
fn tighten(path: &Path, mode: u32) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;

    if fs::metadata(path)?.permissions().mode() & 0o077 == 0 {
        return Ok(false);
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(true)
}

/// Opens a file of the folder for writing, made for its owner alone. SQLite gives its other files the mode of this one.
///
/// # Errors
/// The system's own.
pub fn own_file(path: &Path) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true);
    owner_only(&mut options);
    options.open(path)
}

/// Makes a file beside `path`, for its owner alone, under a name that nobody has: to be written whole before it takes that place, so
/// that nobody reads half of it and no link is followed.
///
/// # Errors
/// The system's own.
pub fn draft(path: &Path, world: &World) -> io::Result<(fs::File, PathBuf)> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", world.token().simple()));
    let mut options = OpenOptions::new();
    options.create_new(true).write(true);
    owner_only(&mut options);
    let draft = PathBuf::from(name);
    Ok((options.open(&draft)?, draft))
}

fn owner_only(options: &mut OpenOptions) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    #[cfg(not(unix))]
    let _ = options;
}

/// The keys of the folder's file; `None` where there is no such file.
///
/// # Errors
/// When it cannot be read, or holds no key.
pub fn keys(data: &Path) -> io::Result<Option<SecretKeys>> {
    let path = data.join(KEY_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let fault =
        |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()));
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let keys: Result<Vec<SecretKey>, _> = lines.map(SecretKey::parse).collect();
    let mut keys = keys.map_err(|error| fault(error.to_string()))?;
    if keys.is_empty() {
        return Err(fault("it is empty".to_owned()));
    }
    let current = keys.remove(0);
    Ok(Some(SecretKeys::new(current, keys)))
}

/// Makes the folder's key, unless another process was faster, and answers what the file holds then.
///
/// # Errors
/// The system's own.
pub fn make_key(data: &Path, world: &World) -> io::Result<SecretKeys> {
    let path = data.join(KEY_FILE);
    let (mut file, draft) = draft(&path, world)?;
    let written = writeln!(file, "{}", SecretKey::random(world).to_base64()).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| match fs::hard_link(&draft, &path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    });
    let _ = fs::remove_file(&draft);
    linked?;
    keys(data)?.ok_or_else(|| io::Error::other("the key file is gone again"))
}
