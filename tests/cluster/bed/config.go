package bed

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"os"
	"text/template"
)

//go:embed config
var configFiles embed.FS

// settings is what the files in config/ may refer to.
type settings struct {
	Run, Data, ContainerdSocket, CNIPlugins, CNINetwork string
	Bridge, PodCIDR, Node, Cgroup, PauseImage           string
	Storage                                             Storage
	VeleroUser                                          string
	Mirrored                                            []mirrored
}

func (b *Bed) settings() settings {
	return settings{
		Run: b.run(), Data: b.data(), ContainerdSocket: b.containerdSocket(),
		CNIPlugins: cniDir(), CNINetwork: b.id(),
		Bridge: bridge, PodCIDR: podCIDR, Node: nodeName, Cgroup: "/" + b.id(),
		PauseImage: pauseImage, Storage: b.storage, VeleroUser: veleroUser,
		Mirrored: b.mirrored(),
	}
}

// id names what the bed has outside of its directory: the top of its pods'
// cgroups, and the files that CNI keeps for their network. By it they can be
// removed without a look at anybody else's.
func (b *Bed) id() string {
	sum := sha256.Sum256([]byte(b.Dir))
	return "stillpoint-" + hex.EncodeToString(sum[:4])
}

// config fills a file of config/ in.
func (b *Bed) config(name string) ([]byte, error) {
	t, err := template.ParseFS(configFiles, "config/"+name)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", name, err)
	}
	var out bytes.Buffer
	if err := t.Option("missingkey=error").Execute(&out, b.settings()); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", name, err)
	}
	return out.Bytes(), nil
}

// writeConfig writes the configuration of all components.
func (b *Bed) writeConfig() error {
	for name, file := range map[string]string{
		"audit-policy.yaml": b.configFile(APIServer),
		"containerd.toml":   b.configFile(Containerd),
		"cni.conflist":      b.run("cni", "10-bridge.conflist"),
		"kubelet.yaml":      b.configFile(Kubelet),
		"kube-proxy.yaml":   b.configFile(Proxy),
	} {
		content, err := b.config(name)
		if err != nil {
			return err
		}
		// Some watch their file and end when it is written, changed or not.
		if have, err := os.ReadFile(file); err == nil && bytes.Equal(have, content) {
			continue
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return fmt.Errorf("configuration %s: %w", name, err)
		}
	}
	// There is no name server; the kubelet wants a file all the same.
	if err := os.WriteFile(b.run("resolv.conf"), []byte("nameserver 127.0.0.1\n"), 0o600); err != nil {
		return err
	}
	credentials := fmt.Sprintf("[default]\naws_access_key_id=%s\naws_secret_access_key=%s\n", s3User, s3Secret)
	return os.WriteFile(b.run("s3-credentials"), []byte(credentials), 0o600)
}
