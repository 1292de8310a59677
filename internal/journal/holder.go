package journal

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Holder is the process that must complete the undo of an entry.
type Holder struct {
	// Pod is the name of its pod in Velero's namespace, or "" outside of a cluster.
	Pod    string    `json:"pod,omitempty"`
	PodUID types.UID `json:"podUID,omitempty"`
	// Host is the host name.
	Host string `json:"host"`
	PID  int    `json:"pid"`
	// Started is the start time of the process in clock ticks since boot, because a later
	// process can have the same PID. 0 is unknown.
	Started uint64 `json:"started,omitempty"`
}

func (h Holder) String() string {
	if h.Pod != "" {
		return fmt.Sprintf("process %d of pod %s", h.PID, h.Pod)
	}
	return fmt.Sprintf("process %d of host %s", h.PID, h.Host)
}

// tokenFile is the service account token of the pod, which names the pod. The host name
// does not if the pod uses the host network.
const tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token" //nolint:gosec // a path

// Here returns the Holder for this process.
var Here = sync.OnceValue(func() Holder {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	here := Holder{Host: host, PID: os.Getpid()}
	here.Started, _ = started(here.PID)
	if token, err := os.ReadFile(tokenFile); err == nil {
		here.Pod, here.PodUID = podOf(token)
	}
	return here
})

// podOf returns the pod in the claims of a service account token. The token is not
// verified, because the pod is only read.
func podOf(token []byte) (name string, uid types.UID) {
	parts := bytes.Split(token, []byte("."))
	if len(parts) != 3 {
		return "", ""
	}
	text, err := base64.RawURLEncoding.DecodeString(string(parts[1]))
	if err != nil {
		return "", ""
	}
	var claims struct {
		Kubernetes struct {
			Pod struct {
				Name string    `json:"name"`
				UID  types.UID `json:"uid"`
			} `json:"pod"`
		} `json:"kubernetes.io"`
	}
	if json.Unmarshal(text, &claims) != nil {
		return "", ""
	}
	return claims.Kubernetes.Pod.Name, claims.Kubernetes.Pod.UID
}

// started returns the start time of a process in this container or on this host, and
// reports whether it lives. A zombie has ended.
func started(pid int) (ticks uint64, lives bool) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, false
	}
	// The second field is the program name in parentheses, which can contain any character.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, false
	}
	ticks, err = strconv.ParseUint(fields[19], 10, 64)
	return ticks, err == nil
}

// facts are the inputs for the decision whether a holder is gone.
type facts struct {
	now  time.Time
	here Holder
	// started is the function started, or a replacement in tests.
	started func(pid int) (ticks uint64, lives bool)
	// pod is the pod of the holder, or nil if it does not exist or was not read.
	pod *corev1.Pod
}

// near reports whether the processes of the holder are visible to this process.
func (f facts) visible(h Holder) bool {
	if h.Pod != "" {
		return h.Pod == f.here.Pod && h.PodUID == f.here.PodUID
	}
	return f.here.Pod == "" && h.Host == f.here.Host
}

// gone returns the reason why the holder of an entry is gone, or "" if it can still be
// there.
func (f facts) holderGone(e *Entry) string {
	h := e.Holder
	if h == (Holder{}) {
		return "the last try has failed"
	}
	if !e.Until.IsZero() && f.now.After(e.Until) {
		return fmt.Sprintf("%s was to be done with it at %s", h, e.Until.UTC().Format(time.RFC3339))
	}
	if f.visible(h) {
		ticks, lives := f.started(h.PID)
		if h.Started != 0 && (!lives || ticks != h.Started) {
			return h.String() + " has ended"
		}
		return ""
	}
	if h.Pod == "" {
		return "" // on another host, where it is not visible
	}
	switch pod := f.pod; {
	case pod == nil || pod.UID != h.PodUID:
		return fmt.Sprintf("pod %s is gone", h.Pod)
	case pod.DeletionTimestamp != nil:
		return fmt.Sprintf("pod %s is being deleted", h.Pod)
	case pod.Status.Phase == corev1.PodSucceeded, pod.Status.Phase == corev1.PodFailed:
		return fmt.Sprintf("pod %s has ended", h.Pod)
	case restarted(pod, e.Since):
		return fmt.Sprintf("the container of pod %s was started anew", h.Pod)
	}
	return ""
}

// restarted reports whether all containers of a pod have restarted since a time. Container
// times are whole seconds.
func restarted(pod *corev1.Pod, since time.Time) bool {
	for _, status := range pod.Status.ContainerStatuses {
		if running := status.State.Running; running != nil && !running.StartedAt.After(since) {
			return false
		}
	}
	return len(pod.Status.ContainerStatuses) > 0
}
