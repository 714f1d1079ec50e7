//! The binary `workers`. All it does is in the library.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    workers::main_from(std::env::args_os()).await
}
