//! The binary `server`. All it does is in the library.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    server::main_from(std::env::args_os()).await
}
