//! `loadtest speed`: how much a system takes, measured from outside, with the load generator on the same machine.
use crate::target::TargetArgs;
use clap::Args;
use std::path::Path;
#[derive(Args, Debug)]
pub(crate) struct SpeedArgs {}
pub(crate) async fn run(_: &TargetArgs, _: &SpeedArgs, _: &Path) -> anyhow::Result<bool> {
    Ok(true)
}
