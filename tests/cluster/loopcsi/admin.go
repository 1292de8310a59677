package loopcsi

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The driver's own service is for tests, beside those of CSI on the same socket:
// what they ask has no place in CSI.
const (
	adminService = "stillpoint.loopcsi.Admin"
	storedMethod = "/" + adminService + "/Stored"
	allowMethod  = "/" + adminService + "/AllowDelete"
)

var adminDescription = grpc.ServiceDesc{
	ServiceName: adminService,
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{
		{MethodName: "Stored", Handler: handle(storedMethod, func(ctx context.Context, d *Driver, _ *emptypb.Empty) (*wrapperspb.BytesValue, error) {
			stored, err := d.Stored(ctx)
			if err != nil {
				return nil, err
			}
			content, err := json.Marshal(stored)
			return wrapperspb.Bytes(content), err
		})},
		{MethodName: "AllowDelete", Handler: handle(allowMethod, func(ctx context.Context, d *Driver, handle *wrapperspb.StringValue) (*emptypb.Empty, error) {
			return &emptypb.Empty{}, d.AllowDelete(ctx, handle.GetValue())
		})},
	},
}

// handle does what code that is generated from a protobuf file does for a call.
func handle[Request, Response any](method string, do func(context.Context, *Driver, *Request) (*Response, error)) grpc.MethodHandler {
	return func(server any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		request := new(Request)
		if err := decode(request); err != nil {
			return nil, err
		}
		serve := func(ctx context.Context, request any) (any, error) {
			driver, isDriver := server.(*Driver)
			typed, isRequest := request.(*Request)
			if !isDriver || !isRequest {
				return nil, fmt.Errorf("%s: %T serves no %T", method, server, request)
			}
			response, err := do(ctx, driver, typed)
			if err != nil {
				return nil, asStatus(err)
			}
			return response, nil
		}
		if intercept == nil {
			return serve(ctx, request)
		}
		return intercept(ctx, request, &grpc.UnaryServerInfo{Server: server, FullMethod: method}, serve)
	}
}

// StoredBy asks a running driver for its snapshots.
func StoredBy(ctx context.Context, driver grpc.ClientConnInterface) ([]Stored, error) {
	content := &wrapperspb.BytesValue{}
	if err := driver.Invoke(ctx, storedMethod, &emptypb.Empty{}, content); err != nil {
		return nil, err
	}
	var stored []Stored
	return stored, json.Unmarshal(content.GetValue(), &stored)
}

// AllowDeleteBy has a running driver take back what was ordered for the deletion
// of a snapshot.
func AllowDeleteBy(ctx context.Context, driver grpc.ClientConnInterface, handle string) error {
	return driver.Invoke(ctx, allowMethod, wrapperspb.String(handle), &emptypb.Empty{})
}
