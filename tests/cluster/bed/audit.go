package bed

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// auditLog takes the API server's audit events. A full one is kept beside it,
// with the time in its name.
func (b *Bed) auditLog() string { return b.run("audit.log") }

// Request is one request to the API server.
type Request struct {
	// Verb is as in RBAC: get, list, watch, create …
	Verb string
	// Resource is in plural, with its group and with the subresource, as in
	// "pods/exec" or "volumesnapshots.snapshot.storage.k8s.io". Of requests for
	// no resource it is the first word of the path, as in "/apis".
	Resource string
	// Pod is the name of the pod that asked, Program what it calls itself there:
	// velero-server is the server, velero one of Velero's own plugins.
	Pod, Program string
	// URI is the path with the query, in which the command of an exec stands.
	URI      string
	Received time.Time
}

// VeleroRequests are the requests of Velero's pods, and the plugins in them,
// that the API server received in this time, without those that it is still
// working on. A watch is one request.
func (b *Bed) VeleroRequests(from, to time.Time) ([]Request, error) {
	old, err := filepath.Glob(strings.TrimSuffix(b.auditLog(), ".log") + "-*.log")
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{} // a watch has an event for its beginning and one for its end
	var found []Request
	for _, file := range append(old, b.auditLog()) {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("read the audit log: %w", err)
		}
		err = readAudit(f, func(id string, r Request) {
			if !seen[id] && !r.Received.Before(from) && !r.Received.After(to) {
				seen[id] = true
				found = append(found, r)
			}
		})
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("read the audit log %s: %w", file, err)
		}
	}
	return found, nil
}

// auditEvent has what is of interest in an event of audit.k8s.io/v1.
type auditEvent struct {
	AuditID    string `json:"auditID"`
	RequestURI string `json:"requestURI"`
	Verb       string `json:"verb"`
	UserAgent  string `json:"userAgent"`
	User       struct {
		Extra map[string][]string `json:"extra"`
	} `json:"user"`
	ObjectRef *struct {
		Resource    string `json:"resource"`
		APIGroup    string `json:"apiGroup"`
		Subresource string `json:"subresource"`
	} `json:"objectRef"`
	RequestReceivedTimestamp time.Time `json:"requestReceivedTimestamp"`
}

// readAudit calls each with every event. The last line may be half written.
func readAudit(log io.Reader, each func(id string, r Request)) error {
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var e auditEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("event %q: %w", line, err)
		}
		each(e.AuditID, e.request())
	}
}

func (e *auditEvent) request() Request {
	r := Request{Verb: e.Verb, URI: e.RequestURI, Received: e.RequestReceivedTimestamp}
	r.Program, _, _ = strings.Cut(e.UserAgent, "/")
	if pods := e.User.Extra["authentication.kubernetes.io/pod-name"]; len(pods) > 0 {
		r.Pod = pods[0]
	}
	if e.ObjectRef == nil {
		path, _, _ := strings.Cut(e.RequestURI, "?")
		first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		r.Resource = "/" + first
		return r
	}
	r.Resource = e.ObjectRef.Resource
	if e.ObjectRef.APIGroup != "" {
		r.Resource += "." + e.ObjectRef.APIGroup
	}
	if e.ObjectRef.Subresource != "" {
		r.Resource += "/" + e.ObjectRef.Subresource
	}
	return r
}
