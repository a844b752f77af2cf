//! A real nginx as origin.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::judge::Judge;
use crate::patience::eventually;
use crate::process::Process;
use crate::proxy::free_port;

/// One nginx process that serves a directory, with an access log; stopped when dropped.
pub struct Nginx {
    directory: TempDir,
    address: SocketAddr,
    child: Child,
}

impl Nginx {
    /// Starts it with `directives` in its server block, in which `ADDRESS` is its own, and waits until it accepts.
    #[track_caller]
    pub fn start(directives: &str) -> Nginx {
        let directory = tempfile::Builder::new().prefix("sluice-nginx-").tempdir().expect("a directory");
        let root = directory.path().display().to_string();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let text = CONFIGURATION.replace("DIRECTIVES", directives);
        let text = text.replace("ADDRESS", &address.to_string()).replace("ROOT", &root);
        let config = directory.path().join("nginx.conf");
        fs::write(&config, text).expect("nginx.conf");
        fs::create_dir(directory.path().join("files")).expect("a directory");
        let log = File::create(directory.path().join("stderr")).expect("a file");
        let mut command = Judge::Nginx.command();
        command.arg("-p").arg(&root).arg("-e").arg("stderr").arg("-c").arg(&config);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("nginx starts");
        let nginx = Nginx { directory, address, child };
        eventually("nginx accepts", || TcpStream::connect(address).is_ok());
        nginx
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where a file of the name is served from.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("files").join(name)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        Process(self.child.id().cast_signed()).signal(Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// One process, so that ending it ends all, and nothing outside its directory.
const CONFIGURATION: &str = "
daemon off;
master_process off;
pid ROOT/nginx.pid;
error_log stderr;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path ROOT/body;
    proxy_temp_path ROOT/proxy;
    fastcgi_temp_path ROOT/fastcgi;
    uwsgi_temp_path ROOT/uwsgi;
    scgi_temp_path ROOT/scgi;
    keepalive_requests 1000000;
    client_max_body_size 0;
    server {
        listen ADDRESS;
        root ROOT/files;
        DIRECTIVES
    }
}
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Wire;

    #[test]
    fn it_serves_a_file() {
        let nginx = Nginx::start("");
        fs::write(nginx.file("a"), "hello").unwrap();
        assert_eq!(Wire::tcp(nginx.address()).get("/a").body, b"hello");
    }
}
