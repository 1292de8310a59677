package bed

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

const certificateLife = 10 * 365 * 24 * time.Hour

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// user is a client of the API server and the groups it is in.
type user struct{ file, name, group string }

var users = []user{
	{"admin", "admin", "system:masters"},
	{"kube-controller-manager", "system:kube-controller-manager", ""},
	{"kube-scheduler", "system:kube-scheduler", ""},
	{"kube-proxy", "system:kube-proxy", ""},
	{"kubelet", "system:node:" + nodeName, "system:nodes"},
}

// makePKI makes keys, certificates and kubeconfigs, all or none: those of an
// earlier start are kept, as the cluster's tokens are signed with them.
func (b *Bed) makePKI() error {
	done := b.run("pki", "done")
	if _, err := os.Stat(done); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := b.writePKI(); err != nil {
		return fmt.Errorf("make the cluster's certificates: %w", err)
	}
	return os.WriteFile(done, nil, 0o600)
}

func (b *Bed) writePKI() error {
	dir := b.run("pki")
	ca, err := newAuthority(dir, "ca")
	if err != nil {
		return err
	}
	frontProxy, err := newAuthority(dir, "front-proxy-ca")
	if err != nil {
		return err
	}
	server := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		IPAddresses: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP(nodeIP), net.ParseIP(apiServiceIP)},
	}
	if _, _, err := ca.issue(dir, "apiserver", server); err != nil {
		return err
	}
	if _, _, err := ca.issue(dir, "apiserver-kubelet", client("kube-apiserver", "system:masters")); err != nil {
		return err
	}
	if _, _, err := frontProxy.issue(dir, "front-proxy", client("front-proxy", "")); err != nil {
		return err
	}
	for _, u := range users {
		certificate, key, err := ca.issue(dir, u.file, client(u.name, u.group))
		if err != nil {
			return err
		}
		if err := b.writeKubeconfig(u.file, ca, certificate, key); err != nil {
			return err
		}
	}
	return writeServiceAccountKey(dir)
}

func client(name, group string) *x509.Certificate {
	c := &x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if group != "" {
		c.Subject.Organization = []string{group}
	}
	return c
}

func newAuthority(dir, name string) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	certificate, err := cert.NewSelfSignedCACert(cert.Config{CommonName: "stillpoint testbed " + name}, key)
	if err != nil {
		return authority{}, err
	}
	if err := cert.WriteCert(filepath.Join(dir, name+".crt"), pemCertificate(certificate)); err != nil {
		return authority{}, err
	}
	return authority{cert: certificate, key: key}, nil
}

// issue signs a certificate and writes it with its key; it returns both as PEM.
func (a authority) issue(dir, name string, template *x509.Certificate) (certificate, key []byte, err error) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour) // a clock may be set back
	template.NotAfter = time.Now().Add(certificateLife)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, signer.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	certificate = pemCertificate(signed)
	if key, err = keyutil.MarshalPrivateKeyToPEM(signer); err != nil {
		return nil, nil, err
	}
	if err := cert.WriteCert(filepath.Join(dir, name+".crt"), certificate); err != nil {
		return nil, nil, err
	}
	return certificate, key, keyutil.WriteKey(filepath.Join(dir, name+".key"), key)
}

func pemCertificate(c *x509.Certificate) []byte {
	b, err := cert.EncodeCertificates(c)
	if err != nil {
		panic(err) // it only writes to memory
	}
	return b
}

// writeServiceAccountKey makes the key that signs and checks the tokens of
// service accounts.
func writeServiceAccountKey(dir string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	private, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return err
	}
	return keyutil.WriteKey(filepath.Join(dir, "service-account.key"), private)
}

func (b *Bed) writeKubeconfig(name string, ca authority, certificate, key []byte) error {
	const cluster = "stillpoint"
	config := api.NewConfig()
	config.Clusters[cluster] = &api.Cluster{Server: apiServer, CertificateAuthorityData: pemCertificate(ca.cert)}
	config.AuthInfos[name] = &api.AuthInfo{ClientCertificateData: certificate, ClientKeyData: key}
	config.Contexts[cluster] = &api.Context{Cluster: cluster, AuthInfo: name}
	config.CurrentContext = cluster
	return clientcmd.WriteToFile(*config, b.run(name+".kubeconfig"))
}
