//! `server backup FOLDER`: a copy of the embedded profile's data, of a server that runs or does not.

use std::path::Path;

use anyhow::{Context as _, bail};
use tributary_core::adapters::folder;

use crate::cli::ServeArgs;

/// Copies the data folder.
///
/// # Errors
/// When the profile is not embedded, the folder is there already, or a copy cannot be made or read.
pub async fn run(args: &ServeArgs, into: &Path) -> anyhow::Result<()> {
    if !args.embedded {
        bail!(
            "server backup copies the folder of --embedded; with PostgreSQL and Redis their own tools do it: docs/OPERATIONS.md, Backup \
             on services"
        );
    }
    args.refuse_missing_folder()?;
    let files = folder::back_up(&args.data, into)
        .await
        .with_context(|| format!("no backup was made in {}", into.display()))?;
    for file in files {
        println!("{}", into.join(file).display());
    }
    eprintln!(
        "copied. {} opens the secrets in it: keep the backup where only you can read it. To restore, start a server with --data on a copy",
        folder::KEY_FILE
    );
    Ok(())
}
