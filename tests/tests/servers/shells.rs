//! OpenSSH and mail.

use tulle_tests::netns::in_a_node;

use crate::{Mesh, declared, large, undeclared};

#[test]
#[ignore = "needs openssh-server and openssh-client"]
fn openssh_lets_its_client_in_and_copies_both_ways() {
    in_a_node(async || {
        let ports = [undeclared(22), declared(2222, "ssh")];
        let mesh = Mesh::start(&ports).await;
        let [first, second] = ports.map(|port| port.number);
        let keys = mesh
            .client("ssh-keygen -q -t ed25519 -N '' -f host; ssh-keygen -q -t ed25519 -N '' -f own; pwd")
            .await;
        let keys = keys.trim();
        let _server = mesh
            .serve(
                &format!(
                    "mkdir /run/sshd
                     exec /usr/sbin/sshd -D -e -f /dev/null -h {keys}/host -o Port={first} -o Port={second} -o PidFile=none \
                     -o AuthorizedKeysFile={keys}/own.pub -o StrictModes=no -o PermitRootLogin=prohibit-password \
                     -o Subsystem='sftp internal-sftp' -o UsePAM=no"
                ),
                &ports,
            )
            .await;
        for to in mesh.addresses() {
            let (ip, port, size) = (to.ip(), to.port(), large());
            let options = format!(
                "-q -F /dev/null -i {keys}/own -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes"
            );
            let ssh = format!("ssh {options} -p {port} root@{ip}");
            let said = mesh.client(&format!("{ssh} 'echo $SSH_CONNECTION | cut -d\" \" -f4'")).await;
            assert_eq!(said.trim(), port.to_string());
            // The end of the input is the end of the remote's input: half a connection's close.
            mesh.client(&format!("head -c {size} /dev/urandom >sent; {ssh} cat <sent | cmp - sent")).await;
            mesh.client(&format!(
                "head -c {size} /dev/urandom >sent; scp {options} -P {port} sent 'root@[{ip}]:'$PWD/copied; cmp sent copied"
            ))
            .await;
            assert_eq!(mesh.client(&format!("{ssh} exit 7 || echo $?")).await.trim(), "7");
        }
        mesh.has_relayed(4 * large(), 2 * large()).await;
    });
}

#[test]
#[ignore = "needs opensmtpd and curl"]
fn opensmtpd_greets_and_takes_mail() {
    in_a_node(async || {
        // The first is known by its number.
        let ports = [undeclared(25), undeclared(2525)];
        let mesh = Mesh::start(&ports).await;
        let [first, second] = ports.map(|port| port.number);
        // Kept by a user who must be able to get there.
        let kept = mesh.client("chmod 711 ..; mkdir -m 777 kept; cd kept; pwd").await;
        let kept = kept.trim();
        let _server = mesh
            .serve(
                &format!(
                    "mount -t tmpfs spool /var/spool; mkdir -m 711 /var/spool/smtpd
                     for address in 0.0.0.0 ::; do for port in {first} {second}; do echo listen on $address port $port; done; done >smtpd.conf
                     echo 'action keep maildir \"{kept}\" user mail virtual {{ \"@\" = mail }}' >>smtpd.conf
                     echo 'match from any for any action keep' >>smtpd.conf
                     exec smtpd -d -f $DIR/smtpd.conf"
                ),
                &ports,
            )
            .await;
        for to in mesh.addresses() {
            let send = format!(
                "{{ printf 'From: a@example.com\\r\\nTo: b@example.com\\r\\nSubject: {to}\\r\\n\\r\\n'; \
                 head -c 2000000 /dev/zero | tr '\\0' '#' | fold -w 900; }} >mail
                 curl -sS --url smtp://{to} --mail-from a@example.com --mail-rcpt b@example.com --upload-file mail"
            );
            mesh.client(&send).await;
            let arrived = format!(
                "until grep -rlF 'Subject: {to}' {kept}/new >found 2>/dev/null; do sleep 0.1; done; tr -cd '#' <$(cat found) | wc -c"
            );
            assert_eq!(mesh.client(&arrived).await.trim(), "2000000");
        }
        mesh.has_relayed(4_000_000, 100).await;
    });
}
