package fake

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream/wsstream"
	"k8s.io/apimachinery/pkg/util/remotecommand"
)

// serveExec runs a command as the kubelet does: over a WebSocket, with an end of
// file on the command's standard input when the connection ends.
func (n *Node) serveExec(w http.ResponseWriter, r *http.Request, request Request) {
	query := r.URL.Query()
	wants := func(stream string) wsstream.ChannelType {
		switch asked, _ := strconv.ParseBool(query.Get(stream)); {
		case !asked:
			return wsstream.IgnoreChannel
		case stream == "stdin":
			return wsstream.ReadChannel
		}
		return wsstream.WriteChannel
	}
	stdin, stdout, stderr := wants("stdin"), wants("stdout"), wants("stderr")
	if stdin == wsstream.IgnoreChannel && stdout == wsstream.IgnoreChannel && stderr == wsstream.IgnoreChannel {
		refuse(w, apierrors.NewBadRequest("you must specify at least 1 of stdin, stdout, stderr"))
		return
	}
	c, err := n.running(request.Namespace, request.Name, query.Get("container"))
	if err != nil {
		refuse(w, err)
		return
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {
			Binary:   true,
			Channels: []wsstream.ChannelType{stdin, stdout, stderr, wsstream.WriteChannel, wsstream.IgnoreChannel},
		},
	})
	_, channels, err := conn.Open(w, r)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	s := streams{stdout: channels[1], stderr: channels[2]}
	if stdin != wsstream.IgnoreChannel {
		s.stdin = channels[0]
	}
	status := metav1.Status{Status: metav1.StatusSuccess}
	if err := c.exec(query["command"], s); err != nil {
		status = metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Message: err.Error()}
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			status.Reason = remotecommand.NonZeroExitCodeReason
			status.Details = &metav1.StatusDetails{Causes: []metav1.StatusCause{{
				Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.ExitCode()),
			}}}
		}
	}
	said, err := json.Marshal(status)
	if err == nil {
		_, _ = channels[3].Write(said)
	}
}

type streams struct {
	stdin          io.Reader // nil for none
	stdout, stderr io.Writer
}
